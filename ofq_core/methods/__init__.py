"""The methods that are compared: one file each, found by the names in `ofq_core.settings.methods`.

A method is a `WeightQuantizer` (`ofq_core.nn.weight`) and, where it treats activations in its own
way, an `ActivationRule` (`ofq_core.nn.activation`). See docs/adding-a-method.md.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from ofq_core.nn import ActivationRule, LSQRule, MakeWeightQuantizer
from ofq_core.settings import QuantSettings
from ofq_core.settings.methods import WEIGHT_METHODS


def weight_quantizer(settings: QuantSettings) -> MakeWeightQuantizer:
    """What makes the quantizer of a low-bit weight matrix, by `quant.weight` and its options."""
    method = WEIGHT_METHODS[settings.weight]
    own = {k: v for k, v in settings.options.items() if k not in method.of_activation}
    return partial(_load(method.quantizer), bits=settings.wbits, **own)


def activation_rule(settings: QuantSettings) -> ActivationRule:
    """How low-bit activations are quantized; LSQ unless the method has a rule of its own."""
    method = WEIGHT_METHODS[settings.weight]
    if method.activation is None:
        return LSQRule()
    own = {k: v for k, v in settings.options.items() if k in method.of_activation}
    rule: ActivationRule = _load(method.activation)(**own)
    return rule


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
