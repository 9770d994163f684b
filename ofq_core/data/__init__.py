"""Data: preparation with a manifest, and batches for training and evaluation."""

from ofq_core.data.arrays import ArrayData
from ofq_core.data.augment import augment
from ofq_core.data.class_names import check_class_names, stored_class_names
from ofq_core.data.deaths import worker_deaths
from ofq_core.data.digits import prepare_digits
from ofq_core.data.open import check_alike, open_data, prepare_data
from ofq_core.data.source import Batch, Data, Share, SplitName, positions
from ofq_core.data.splits import PreparedData, Split, load_prepared, read_manifest

__all__ = [
    "ArrayData",
    "Batch",
    "Data",
    "PreparedData",
    "Share",
    "Split",
    "SplitName",
    "augment",
    "check_alike",
    "check_class_names",
    "load_prepared",
    "open_data",
    "positions",
    "prepare_data",
    "prepare_digits",
    "read_manifest",
    "stored_class_names",
    "worker_deaths",
]
