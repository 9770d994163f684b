"""What the name of a method says: `statsq_qkr_br0p003` is StatsQ with QKR at boundary range 0.003.

The labels are those of the registry of methods, kept in methods.json: the tables read files and
import nothing of `ofq_core`. `python -m tests.methods.render` writes it, and a test compares it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict


class _Kept(TypedDict):
    label: str
    trains: bool


_KEPT: Final = Path(__file__).with_name("methods.json")
# In the order of the registry, which is the order of the rows.
_METHODS: Final[dict[str, _Kept]] = json.loads(_KEPT.read_text())
_NAME = re.compile(
    r"(?P<base>.+?)(?:_(?P<fidelity>described|released))?(?:_br(?P<range>\d+(?:p\d+)?))?"
)
_FULL_PRECISION = "fp"
_OFQ = "statsq_qkr_cga"
_FIDELITIES = {"released": "released code", "described": "as described"}


@dataclass(frozen=True)
class MethodName:
    """A method's name taken apart.

    fidelity: described or released where the name says so. boundary_range: likewise. outdated: as
    its study says; such runs are shown, marked, and nothing rests on them.
    """

    name: str
    weight: str
    qkr: bool
    cga: bool
    fidelity: str | None
    boundary_range: float | None
    outdated: bool = False

    @property
    def plain(self) -> bool:
        """Whether it has the study's own fidelity and boundary range."""
        return self.fidelity is None and self.boundary_range is None

    @property
    def trains(self) -> bool:
        """Whether it is a method of training; post-training quantization is not."""
        return self.weight not in _METHODS or _METHODS[self.weight]["trains"]

    @property
    def label(self) -> str:
        """What the method is called in tables; names that are not known stay as they are."""
        if self.weight == _FULL_PRECISION:
            return "Full precision"
        known = _METHODS.get(self.weight)
        words = known["label"] if known is not None else self.weight
        words += (" + QKR" if self.qkr else "") + (" + CGA" if self.cga else "")
        if (self.weight, self.qkr, self.cga) == ("statsq", True, True):
            words = f"OFQ ({words})"
        if self.boundary_range is not None:
            words += f", boundary range {self.boundary_range:g}"
        words += f", {_FIDELITIES[self.fidelity]}" if self.fidelity else ""
        return words + (" (outdated)" if self.outdated else "")

    @property
    def rank(self) -> tuple[int, bool, bool, str, float, str]:
        """Full precision first, then the registry's order, components after plain."""
        order = [_FULL_PRECISION, *_METHODS]
        place = order.index(self.weight) if self.weight in order else len(order)
        return (
            place,
            self.cga,
            self.qkr,
            self.fidelity or "",
            self.boundary_range or 0.0,
            self.name,
        )


def method_name(name: str) -> MethodName:
    """A method's name taken apart."""
    match = _NAME.fullmatch(name)
    base, fidelity, range_ = match.group("base", "fidelity", "range") if match else (name, None, "")
    base = _OFQ if base == "ofq" else base
    without_cga = base.removesuffix("_cga")
    weight = without_cga.removesuffix("_qkr")
    return MethodName(
        name=name,
        weight=weight,
        qkr=weight != without_cga,
        cga=without_cga != base,
        fidelity=fidelity,
        boundary_range=float(range_.replace("p", ".")) if range_ else None,
    )
