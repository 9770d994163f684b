"""Data: preparation with a manifest, splits in memory, augmentation."""

from ofq_core.data.augment import augment
from ofq_core.data.digits import prepare_digits
from ofq_core.data.splits import PreparedData, Split, load_prepared, read_manifest

__all__ = ["PreparedData", "Split", "augment", "load_prepared", "prepare_digits", "read_manifest"]
