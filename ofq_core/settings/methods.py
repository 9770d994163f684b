"""The methods that `quant.weight` may name: what they are called, where they are, how they combine.

Read without torch, so that a wrong combination is refused before anything is loaded. The classes
are in `ofq_core.methods`, one file each; docs/adding-a-method.md walks through a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Option:
    """A number of a method: `quant.options.<name>`, from `low` to `high`, both included.

    default_at: the defaults of the bit widths that have their own.
    """

    default: float
    low: float
    high: float
    what: str
    default_at: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightMethod:
    """What is known of a method without loading it.

    label: in tables. quantizer: "module:class" of its weight quantizer. activation: the same of
    its rule for activations; None is LSQ. bits: bit widths it is defined for. trains: False for
    post-training quantization. no_qkr, no_cga, no_average (recipe.ema_decay): why it cannot be
    combined; empty where it can.
    options: its numbers. of_activation: those that its rule for activations takes; the others are
    the weight quantizer's.
    """

    label: str
    quantizer: str
    activation: str | None = None
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    trains: bool = True
    no_qkr: str = ""
    no_cga: str = ""
    no_average: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    of_activation: tuple[str, ...] = ()


_UNTRAINED = "it is not trained, so there is no last phase in which weights could be frozen"

WEIGHT_METHODS: dict[str, WeightMethod] = {
    "lsq": WeightMethod("LSQ", "ofq_core.methods.lsq:LSQWeight"),
    "statsq": WeightMethod("StatsQ", "ofq_core.methods.statsq:StatsQWeight"),
    "lsqplus": WeightMethod(
        "LSQ+",
        "ofq_core.methods.lsqplus:LSQPlusWeight",
        activation="ofq_core.methods.lsqplus:LSQPlusActivation",
    ),
    "pact": WeightMethod(
        "PACT (DoReFa weights)",
        "ofq_core.methods.pact:DoReFaWeight",
        activation="ofq_core.methods.pact:PACTActivation",
        options={"alpha_decay": Option(1e-4, 0.0, 1.0, "weight of PACT's L2 penalty on alpha")},
        of_activation=("alpha_decay",),
    ),
    "dampening": WeightMethod(
        "LSQ, dampening",
        "ofq_core.methods.dampening:DampenedWeight",
        options={"strength": Option(0.1, 0.0, 100.0, "final weight of the penalty")},
    ),
    "freezing": WeightMethod(
        "LSQ, iterative freezing",
        "ofq_core.methods.freezing:FreezingWeight",
        no_cga="both freeze weights, and what one holds the other would count as confident",
        no_average="which weights are frozen is known of the trained weights, not of their average",
        options={
            "first_threshold": Option(
                0.1,
                0.0,
                1.0,
                "frequency to freeze at after a quarter of the run",
            ),
            "last_threshold": Option(
                0.01, 0.0, 1.0, "the same at the end of training", default_at={3: 0.011}
            ),
        },
    ),
    "obr": WeightMethod(
        "LSQ, OBR (VVTQ)",
        "ofq_core.methods.obr:BinRegularisedWeight",
        options={"strength": Option(0.01, 0.0, 100.0, "final weight of the penalty")},
    ),
    "seq": WeightMethod("SEQ (ParetoQ)", "ofq_core.methods.seq:SEQWeight"),
    "qema": WeightMethod(
        "LSQ, Q-EMA rounding",
        "ofq_core.methods.qema:EMARoundedWeight",
        no_cga="it rounds by a moving average, so a weight near a threshold is not about to flip",
        no_average="it rounds by an average of the trained weights, not of their average",
        options={"decay": Option(0.998, 0.0, 0.999999, "decay of the moving average of weights")},
    ),
    "stableqat": WeightMethod(
        "LSQ, StableQAT gradient",
        "ofq_core.methods.stableqat:StableWeight",
        options={"amplitude": Option(0.21, 0.0, 0.22, "A_0 of the surrogate; 0 is the STE")},
    ),
    "rtn": WeightMethod(
        "Round to nearest (PTQ)",
        "ofq_core.methods.rtn:RoundToNearestWeight",
        activation="ofq_core.methods.rtn:RangeActivation",
        trains=False,
        no_cga=_UNTRAINED,
    ),
    "ptq": WeightMethod(
        "Calibrated PTQ",
        "ofq_core.methods.ptq:LeastErrorWeight",
        activation="ofq_core.methods.ptq:LeastErrorActivation",
        trains=False,
        no_cga=_UNTRAINED,
    ),
}
