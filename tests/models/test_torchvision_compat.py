"""`import torchvision` works whatever operator library it comes with, and is helped only if needed.

Each case runs in a process of its own: an import can be tried once in a process. Stand-ins for
torchvision, put first on the path, simulate the installations that this machine does not have.
"""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.patience import PATIENCE

HELPED = """
import torch
from ofq_core.models.torchvision_compat import import_torchvision
helped = import_torchvision()
assert import_torchvision() == helped, "a second call gives the same answer"
import torchvision
declared = hasattr(torch.ops.torchvision, "nms")
print(helped, declared)
"""

# Behaves like torchvision built for another torch: it registers a shape function for an operator
# that is not there.
BROKEN = """
import torch
from torchvision import part
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
"""


def python(code, *path):
    folders = [str(folder) for folder in path]
    inherited = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([*folders, *([inherited] if inherited else [])])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": joined},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture
def stand_in(tmp_path):
    """Make a package called torchvision with this source."""

    def write(source):
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(source)
        (package / "part.py").write_text("")
        return tmp_path

    return write


def test_the_installed_torchvision():
    """Helped exactly when `import torchvision` alone does not work."""
    alone = python("import torchvision")
    helped = python(HELPED + "import torchvision.transforms, timm")
    assert helped.returncode == 0, helped.stderr
    works_alone = alone.returncode == 0
    assert helped.stdout.split()[0] == str(not works_alone)
    if not works_alone:
        assert "operator torchvision::nms does not exist" in alone.stderr


def test_a_working_torchvision_is_left_alone(stand_in):
    result = python(HELPED, stand_in("works = True"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", "False"]


def test_a_torchvision_that_is_imported_already_is_left_alone(stand_in):
    result = python("import torchvision\n" + HELPED, stand_in("works = True"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", "False"]


def test_a_missing_operator_is_declared(stand_in):
    folder = stand_in(BROKEN)
    assert "torchvision::nms does not exist" in python("import torchvision", folder).stderr
    result = python(HELPED, folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "True"]


def test_other_errors_are_not_hidden(stand_in):
    """They are raised at once: this one would be gone at a second try."""
    once = """
        import sys
        if not hasattr(sys, "tried"):
            sys.tried = True
            raise RuntimeError("something else is broken")
    """
    result = python(HELPED, stand_in(textwrap.dedent(once)))
    assert result.returncode != 0
    assert "something else is broken" in result.stderr
