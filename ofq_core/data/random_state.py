"""Seed the three generators that transforms draw from, and put them back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Let Python's, NumPy's and torch's (CPU) global generators start from `seed`."""
    random.seed(seed)
    # NumPy's seeds are lists of 32-bit words.
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    # Not torch.manual_seed, which would seed the accelerators too.
    torch.default_generator.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's (CPU) global generators start from `seed` inside the block.

    timm's transforms draw from all three. Afterwards they are as before, so that it makes no
    difference whether images are read in this process or in another one.
    """
    with kept():
        seed_all(seed)
        yield


@contextmanager
def kept() -> Iterator[None]:
    """After the block the three generators are as before.

    Keeping and putting back takes five times as long as seeding, so do it for a batch at once.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
