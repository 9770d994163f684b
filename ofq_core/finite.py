"""Where a NaN or an infinity is: in a module's output, in a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


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


def not_finite_tensor(named: Iterable[tuple[str, Any]]) -> str | None:
    """The first of the named tensors with a NaN or an infinity, and what it holds.

    Values that are no floating-point tensors are passed over. The tensors are asked in one go, so
    a device is waited for once, and once more where something is wrong.
    """
    tensors = [
        (name, value)
        for name, value in named
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    if not tensors:
        return None
    device = tensors[0][1].device
    flags = torch.stack([value.detach().isfinite().all().to(device) for _, value in tensors])
    if bool(flags.all()):
        return None
    name, value = tensors[flags.tolist().index(False)]
    wrong = value.detach()[~value.detach().isfinite()]
    return f"{name} has {wrong.numel()} of {value.numel()} values like {float(wrong[0])}"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
