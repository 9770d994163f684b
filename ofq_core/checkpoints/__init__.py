"""Checkpoints and weights on disk."""

from ofq_core.checkpoints.io import FORMAT, load, load_checkpoint, load_weights, save

__all__ = ["FORMAT", "load", "load_checkpoint", "load_weights", "save"]
