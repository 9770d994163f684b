"""Checkpoints and weights on disk: of this suite, and in the layout of the released code."""

from ofq_core.checkpoints.io import FORMAT, load, load_checkpoint, load_weights, record, save
from ofq_core.checkpoints.released_files import read_released, save_released
from ofq_core.checkpoints.released_fill import export_released, fill_released
from ofq_core.checkpoints.released_load import ReleasedModel, ReleasedReport, load_released

__all__ = [
    "FORMAT",
    "ReleasedModel",
    "ReleasedReport",
    "export_released",
    "fill_released",
    "load",
    "load_checkpoint",
    "load_released",
    "load_weights",
    "read_released",
    "record",
    "save",
    "save_released",
]
