"""What to say when a loss is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ofq_core.errors import OFQError


class TrainingError(OFQError):
    """Training cannot go on, such as after a loss that is not finite."""


def first_not_finite(modules: dict[str, nn.Module], forward: Callable[[], object]) -> str | None:
    """The first module, in the order of the forward, whose output has a NaN or an infinity.

    Args:
        modules: models by the prefix of the names of their modules.
        forward: runs them; it is called once.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(bool(torch.isfinite(t).all()) for t in _tensors(output)):
                found.append(name)

        return look

    handles = [
        module.register_forward_hook(watch(f"{prefix}{name}"))
        for prefix, model in modules.items()
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
