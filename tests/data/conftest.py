"""Digits, prepared once for reading and afresh for damaging."""

import shutil

import pytest

from ofq_core.data import prepare_digits
from ofq_core.settings import DataSettings


@pytest.fixture(scope="session")
def settings():
    """The settings of the embedded default, overridden by keywords."""

    def make(**changes):
        return DataSettings(name="digits", **changes)

    return make


@pytest.fixture(scope="session")
def pristine(tmp_path_factory, settings):
    """All digits, as `dvc repro prepare` leaves them; not to be changed."""
    folder = tmp_path_factory.mktemp("pristine") / "digits"
    prepare_digits(settings(), folder)
    return folder


@pytest.fixture
def copy(pristine, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "digits")
