"""What became of every tensor of a model that was converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ConversionReport:
    """What became of every tensor of the source model.

    kept: source name -> names in the quantized model that hold its values. dropped: source
    name (or part of it) -> why. new: names that the source does not have.
    """

    kept: dict[str, tuple[str, ...]]
    dropped: dict[str, str]
    new: tuple[str, ...]

    def summary(self) -> str:
        """One line for the log."""
        kinds = Counter((".".join(n.split(".")[-2:]), why) for n, why in self.dropped.items())
        dropped = "".join(f"; {n} x {kind} dropped ({why})" for (kind, why), n in kinds.items())
        return f"{len(self.kept)} tensors kept, {len(self.new)} new{dropped}"


def compare(
    before: Mapping[str, Tensor], model: nn.Module, lost: Mapping[str, str]
) -> ConversionReport:
    """Compare values, not intentions: a tensor is kept when its values are found again.

    Args:
        before: state of the source model.
        lost: ends of names -> why tensors of that name are not expected to be found.
    """
    after = model.state_dict()
    kept: dict[str, tuple[str, ...]] = {}
    dropped: dict[str, str] = {}
    accounted: set[str] = set()
    for name, value in before.items():
        if name in after and torch.equal(after[name], value):
            kept[name] = (name,)
            accounted.add(name)
            continue
        parts = [] if name in after else _qkv_parts(name, value)
        found = [new for new, part in parts if new in after and torch.equal(after[new], part)]
        accounted.update(found)
        if found:
            kept[name] = tuple(found)
        for new, _ in parts:
            if new not in found:
                dropped[_source_part(new)] = _reason(new, lost)
        if not parts:
            dropped[name] = _reason(name, lost)
            accounted.add(name)
    return ConversionReport(kept, dropped, tuple(n for n in after if n not in accounted))


def _reason(name: str, lost: Mapping[str, str]) -> str:
    return next((why for end, why in lost.items() if name.endswith(end)), "not found again")


def _qkv_parts(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """Where QKR puts the thirds of a qkv tensor."""
    if not name.endswith((".qkv.weight", ".qkv.bias")):
        return []
    stem, kind = name.rsplit(".qkv.", 1)
    q, k, v = value.chunk(3)
    return [(f"{stem}.q_{kind}", q), (f"{stem}.k_{kind}", k), (f"{stem}.v.{kind}", v)]


def _source_part(name: str) -> str:
    """'blocks.0.attn.k_bias' -> 'blocks.0.attn.qkv.bias[k]'."""
    stem, leaf = name.rsplit(".", 1)
    part, _, kind = leaf.partition("_")
    if not kind:  # '...attn.v' + '.bias'
        return f"{stem.removesuffix('.v')}.qkv.{leaf}[v]"
    return f"{stem}.qkv.{kind}[{part}]"
