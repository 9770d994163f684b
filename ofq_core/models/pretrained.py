"""Pretrained full-precision weights: from timm, or Swin's from torchvision (spec 7.2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ofq_core.errors import ModelError
from ofq_core.models.build import build_model, create, import_timm
from ofq_core.models.swin_keys import swin_from_torchvision
from ofq_core.models.torchvision_compat import import_torchvision
from ofq_core.settings import ModelSettings

# timm's name -> torchvision's; the released runs start from torchvision's Swin.
_TORCHVISION = {
    "swin_tiny_patch4_window7_224": "swin_t",
    "swin_small_patch4_window7_224": "swin_s",
    "swin_base_patch4_window7_224": "swin_b",
}
# That all of torchvision's weights above know.
IMAGENET_CLASSES = 1000
_INSTEAD = (
    "Get them on a machine with a network (the same command there fills the cache; HF_HOME and "
    "TORCH_HOME say where it is), copy the cache, or set teacher.checkpoint to a file of weights"
)


def load_pretrained(settings: ModelSettings, source: Literal["timm", "torchvision"]) -> nn.Module:
    """A model with its published weights, from the cache or the network.

    Raises:
        ModelError: the source has no weights for this model, they do not fit the sizes in the
            settings, or they can be neither found nor downloaded.
    """
    model = build_model(settings, 0)
    check_pretrained(settings, source)
    if source == "timm":
        return _from_timm(settings)
    state = _torchvision_state(_TORCHVISION[settings.name])
    _fill(model, swin_from_torchvision(state), settings.name)
    return model


def check_pretrained(settings: ModelSettings, source: Literal["timm", "torchvision"]) -> None:
    """What can be known of published weights without having them.

    Raises:
        ModelError: the source has no weights for this model, or they know other classes.
    """
    if source == "torchvision":
        if settings.name not in _TORCHVISION:
            raise ModelError(
                f"teacher.pretrained = 'torchvision' has weights for {', '.join(_TORCHVISION)}, "
                f"not for model.name = {settings.name!r}: expected one of these, or 'timm'"
            )
        _check_classes(settings, IMAGENET_CLASSES)
        return
    timm = import_timm()
    if not timm.models.is_model_pretrained(settings.name):
        raise ModelError(
            f"teacher.pretrained = 'timm': timm has no weights for model.name = "
            f"{settings.name!r}; train a teacher (teacher.recipe) or set teacher.checkpoint"
        )
    _check_classes(settings, timm.models.get_pretrained_cfg(settings.name).num_classes)


def _check_classes(settings: ModelSettings, classes: int) -> None:
    """timm would give a head of another size random weights, and say nothing."""
    if settings.num_classes != classes:
        raise ModelError(
            f"model.num_classes = {settings.num_classes}: the published weights of "
            f"{settings.name} know {classes} classes. Train a teacher (teacher.recipe) instead"
        )


def _from_timm(settings: ModelSettings) -> nn.Module:
    timm = import_timm()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create(timm, settings, pretrained=True)
    except ModelError:
        raise
    except Exception as error:  # hubs raise what they like: network, cache, HTTP, file errors
        raise ModelError(_cannot(settings.name, "timm", error)) from error


def _torchvision_state(name: str) -> dict[str, Tensor]:
    import_torchvision()
    import torchvision

    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # URLError, OSError, a broken download
        raise ModelError(_cannot(name, "torchvision", error)) from error
    return state


def _cannot(name: str, source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"teacher.pretrained = {source!r}: the weights of {name} are not in the cache and cannot "
        f"be downloaded ({type(error).__name__}: {reason}). {_INSTEAD}"
    )


def _fill(model: nn.Module, state: dict[str, Tensor], name: str) -> None:
    own = model.state_dict()
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        raise ModelError(
            f"the published weights of {name} do not fit the model with these settings (first "
            f"difference: {wrong[0]}): leave model sizes null and set num_classes = 1000"
        )
    model.load_state_dict(state)
