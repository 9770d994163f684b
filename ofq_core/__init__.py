"""Low-bit vision transformers after OFQ (ICML 2023): quantizers, layers, models, training.

The package knows nothing of DVC, MLflow or SLURM. Importing it imports no torch: take what you
need from its modules (`ofq_core.quant`, `ofq_core.nn`, `ofq_core.models`, `ofq_core.training`).
"""

__version__ = "0.1.0"
