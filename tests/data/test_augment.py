"""Augmentation: decided by the generator alone, small, and nothing when it is off."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from ofq_core.data import augment
from ofq_core.settings import DigitsSettings

OFF = {"shift_pixels": 0.0, "scale_range": 0.0, "rotate_degrees": 0.0, "noise": 0.0}


def views(images, seed=0, **changes):
    settings = DigitsSettings(name="digits", **{**OFF, **changes})
    return augment(images, settings, torch.Generator().manual_seed(seed))


def blob(count=64, size=8, at=(3.5, 3.5), width=1.2):
    """Smooth spots away from the border, whose centre and spread can be measured."""
    grid = torch.arange(size, dtype=torch.float32)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    spot = torch.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * width**2))
    return spot.expand(count, 1, size, size).clone()


def centres(images):
    size = images.shape[-1]
    grid = torch.arange(size, dtype=torch.float32)
    mass = images.sum(dim=(1, 2, 3))
    y = (images.sum(dim=(1, 3)) * grid).sum(1) / mass
    x = (images.sum(dim=(1, 2)) * grid).sum(1) / mass
    return torch.stack([y, x], dim=1)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), size=st.sampled_from([4, 8, 11]))
def test_off_is_the_identity(seed, count, size):
    """Bilinear sampling at the pixel centres: equal up to the rounding of their coordinates."""
    images = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(views(images, seed), images, rtol=0, atol=2e-6)


def test_same_generator_same_views():
    strong = {"shift_pixels": 1.0, "scale_range": 0.1, "rotate_degrees": 10.0, "noise": 0.1}
    images = blob(16)
    assert torch.equal(views(images, 5, **strong), views(images, 5, **strong))
    assert not torch.equal(views(images, 5, **strong), views(images, 6, **strong))


def test_every_image_has_a_view_of_its_own():
    result = views(blob(16), shift_pixels=1.0)
    assert len(result.flatten(1).unique(dim=0)) == 16


@given(seed=st.integers(0, 10**6), shift=st.floats(0.1, 1.5))
def test_shift_is_bounded(seed, shift):
    images = blob(32, size=16, at=(7.5, 7.5))
    moved = centres(views(images, seed, shift_pixels=shift)) - 7.5
    # A centre of mass after bilinear sampling of a spot that fits: exact to a few hundredths.
    assert float(moved.abs().max()) <= shift + 0.03
    assert float(moved.abs().max()) > shift / 2, "32 draws reach out"
    assert float(moved[:, 0].min()) < 0 < float(moved[:, 0].max()), "both directions"
    assert float(moved[:, 1].min()) < 0 < float(moved[:, 1].max())


def test_rotation_is_bounded():
    """A spot far from the centre goes round it by at most the angle that was asked for."""
    images = blob(64, size=33, at=(16.0, 26.0), width=2.0)
    offset = centres(views(images, rotate_degrees=20.0)) - 16.0
    degrees = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 1]))
    assert 15 < float(degrees.max()) <= 20.5
    assert -20.5 <= float(degrees.min()) < -15
    radius = offset.norm(dim=1)
    torch.testing.assert_close(radius, torch.full_like(radius, 10.0), rtol=0, atol=0.1)


def test_zoom_is_bounded():
    images = blob(64, size=33, at=(16.0, 26.0), width=2.0)
    radius = (centres(views(images, scale_range=0.2)) - 16.0).norm(dim=1)
    assert 10 / 1.21 <= float(radius.min()) < 10 / 1.15
    assert 10 / 0.85 < float(radius.max()) <= 10 / 0.79


@given(seed=st.integers(0, 10**6))
def test_geometry_stays_between_the_values_of_the_image(seed):
    """Bilinear sampling and zeros outside neither overshoot nor go below zero."""
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    result = views(images, seed, shift_pixels=2.0, scale_range=0.2, rotate_degrees=30.0)
    assert float(result.min()) >= -1e-6
    assert float(result.max()) <= float(images.max()) + 1e-6


def test_outside_is_black():
    shifted = views(torch.ones(64, 1, 8, 8), shift_pixels=2.0)
    assert float(shifted.min()) < 0.05


def test_noise_has_the_size_that_was_asked_for():
    noise = views(torch.zeros(500, 1, 8, 8), noise=0.2)
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.005)


def test_noise_does_not_change_the_geometry():
    images = blob(8)
    quiet, noisy = (views(images, 3, shift_pixels=1.0, noise=n) for n in (0.0, 1e-4))
    assert float((quiet - noisy).abs().max()) < 1e-3


def test_images_are_not_changed_in_place():
    images = blob(4)
    before = images.clone()
    views(images, shift_pixels=1.0, noise=0.1)
    assert torch.equal(images, before)


def test_digits_keep_their_orientation():
    """No flips: a view resembles its image more than the mirrored one."""
    left = blob(64, at=(3.5, 1.5))
    result = views(left, shift_pixels=0.5, scale_range=0.05, rotate_degrees=5.0)
    near, far = F.mse_loss(result, left), F.mse_loss(result, left.flip(-1))
    assert float(near) < float(far) / 5
    assert bool((centres(result)[:, 1] < 3.5).all())
