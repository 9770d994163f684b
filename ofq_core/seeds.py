"""One seed per purpose, derived from the run's seed, so that no draw depends on another."""

from __future__ import annotations

import hashlib
import os

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from the run's seed and a purpose, such as ("order", epoch)."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def make_deterministic(seed: int, threads: int) -> None:
    """Fix torch's global generators, algorithms, formats and number of CPU threads."""
    # cuBLAS reads this when it is first used; without it its sums may differ from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(derive_seed(seed, "torch"))
    torch.use_deterministic_algorithms(True)
    # FP32 means FP32: by default cuDNN would round the operands of convolutions to TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    # No tensor here is read before it is written; filling each one costs a tenth of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
