"""Whether a model is as large as the file that is to fill it, before room is made for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ofq_core.errors import CheckpointError
from ofq_core.models import build_model
from ofq_core.settings import ModelSettings

# A converted model has a few biases less than its source, and no tensor twice.
_PARAMETERS = 2
# Tables that no file holds, such as Swin's masks.
_BUFFERS, _SMALL = 16, 64 * 2**20


def check_size(settings: ModelSettings, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a model that is much larger than the weights for it.

    Args:
        source: what says the sizes of the model, for the message.

    Raises:
        CheckpointError: it is. ModelError: see `build_model`.
    """
    held = sum(tensor.nbytes for tensor in state.values())
    blocks = settings.depth or sum(settings.depths or ())
    if blocks > len(state):
        raise CheckpointError(
            f"{source}: a model of {blocks} blocks, and there are {len(state)} tensors for it"
        )
    try:
        with torch.device("meta"):
            model = build_model(settings, 0)
    except RuntimeError as error:  # sizes that no integer holds
        raise CheckpointError(f"{source}: a model of impossible size ({error})") from error
    parameters = sum(tensor.nbytes for tensor in model.parameters())
    buffers = sum(tensor.nbytes for tensor in model.buffers())
    if parameters > _PARAMETERS * held or buffers > max(_SMALL, _BUFFERS * held):
        raise CheckpointError(
            f"{source}: a model of {(parameters + buffers) / 2**20:,.0f} MiB, and the weights for "
            f"it are {held / 2**20:,.1f} MiB: expected sizes that fit each other"
        )
