"""docs/adding-a-method.md, followed to the letter in a copy of the repository.

The page says "New file `path`:" or "In `path`, before the line `line`:" above each block.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ofq_core.settings.methods import WEIGHT_METHODS
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/adding-a-method.md").read_text()
BLOCK = re.compile(
    r"^(?P<how>New file|In) `(?P<path>[\w./-]+)`(?:, before the line `(?P<line>[^`]+)`)?:\n\n"
    r"```\w+\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NAME = "fixed"
# Prepares, trains a teacher and then the cell; one process, because starting torch is what takes
# time. Each stage opens params.yaml itself.
STAGES = f"""
import ofq_core
print(ofq_core.__file__)
from pipelines import evaluate, grid, prepare, qat, teacher
prepare.main([])
teacher.main([])
grid.main(["--method", "{NAME}", "--bits", "2", "--seed", "0"])
qat.main([])
evaluate.main([])
"""
# What decides a command besides its arguments.
FOREIGN = ("MLFLOW_", "DVC_", "GIT_", "OFQ_", "SLURM_", "PYTEST_", "PYTHONPATH")


def follow(page, folder):
    """Put every block where the page says; returns the files."""
    files = []
    for block in BLOCK.finditer(page):
        path = folder / block["path"]
        if block["how"] == "New file":
            assert block["line"] is None
            assert not path.exists(), f"{path.name} is not new"
            path.write_text(block["code"])
        else:
            lines = path.read_text().splitlines(keepends=True)
            (place,) = [i for i, line in enumerate(lines) if line.strip() == block["line"].strip()]
            path.write_text("".join([*lines[:place], block["code"], *lines[place:]]))
        files.append(block["path"])
    return files


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A command in a folder whose own code runs, as after `cd`."""
    home = tmp_path_factory.mktemp("home")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    own = {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "OFQ_TRACKING": "off",
        "OFQ_PROFILE": "local",
    }

    def run(folder, *words, given=None):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=kept | own,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{words}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="module")
def followed(copy_working_tree, tmp_path_factory, python):
    """The copy after section 3: the blocks are in place, settings and the page composed."""
    folder = copy_working_tree(tmp_path_factory.mktemp("followed") / "copy")
    files = follow(PAGE, folder)
    for words in indented("python -m pipelines.params", "python -m tests.methods.render"):
        python(folder, *words[1:])
    return SimpleNamespace(folder=folder, files=files)


def indented(*beginnings):
    """The commands of the page that begin in one of these ways, split as a shell does."""
    lines = re.findall(r"^    (\S.*)$", PAGE, re.MULTILINE)
    found = [line for line in lines if line.startswith(beginnings)]
    assert found, beginnings
    return [shlex.split(re.sub(r"\s+\(.*\)$", "", line)) for line in found]


def test_the_page_has_a_block_for_each_place():
    placed = [(block["how"], block["path"]) for block in BLOCK.finditer(PAGE)]
    assert placed == [
        ("New file", f"ofq_core/methods/{NAME}.py"),
        ("In", "ofq_core/settings/methods.py"),
        ("New file", f"conf/method/{NAME}.yaml"),
        ("In", "conf/config.yaml"),
        ("In", "conf/config.yaml"),
        ("New file", f"tests/methods/test_{NAME}.py"),
    ]
    assert PAGE.count("\n```") == 2 * len(placed), "no other block"
    assert NAME not in WEIGHT_METHODS, "the example is not in the suite"


def test_every_file_that_the_page_names_is_there(followed):
    named = {path for path in re.findall(r"`([\w-]+/[\w./-]+)`", PAGE) if "." in path}
    assert len(named) > 8
    assert [path for path in sorted(named) if not (followed.folder / path).is_file()] == []


def test_settings_are_accepted(followed, python):
    """`dvc exp run -S ...` composes as `pipelines.params` does."""
    dialled = [
        [word for before, word in itertools.pairwise(words) if before == "-S"]
        for words in indented("dvc exp run")
    ]
    tries = [*dialled, [f"method={NAME}"], [f"method={NAME}", "quant.qkr=true", "quant.cga=true"]]
    tries += [["quant.options.factor=3.0"], [f"method={NAME}", "quant.options.factor=11"]]
    given = json.dumps(tries)
    results = json.loads(python(followed.folder, "-m", "pipelines.params", "--check", given=given))
    *accepted, of_another, too_large = results
    assert [result for result in accepted if "error" in result] == []
    first, factor, smoke, rivals = (result["settings"] for result in accepted[:4])
    assert (first["quant"]["weight"], first["quant"]["wbits"]) == (NAME, 3)
    assert factor["quant"]["options"]["factor"] == 3.0
    assert (smoke["study"], smoke["quant"]["weight"]) == ("smoke", NAME)
    assert rivals["grid"]["rivals"]["methods"] == [NAME]
    assert "has no such option" in of_another["error"]
    assert "expected a number in [0.1, 10]" in too_large["error"]


def test_it_trains(followed, python, tmp_path):
    """As a row of the smoke study, and as the experiment that is dialled."""
    folder = shutil.copytree(followed.folder, tmp_path / "copy")
    python(folder, "-m", "pipelines.params", "preset=smoke", f"method={NAME}")
    said = python(folder, "-c", STAGES)
    assert said.startswith(str(folder)), "the code of the copy"
    for run in (f"smoke/{NAME}-w2a2-s0", "experiment"):
        metrics = json.loads((folder / "results" / run / "metrics.json").read_text())
        assert metrics["n_images"] == 75
        assert metrics["oscillation"]["flip_rate"] > 0
        assert "factor: 2.0" in (folder / "results" / run / "settings.yaml").read_text()


def test_its_tests_pass(followed, python):
    """The contract by its name, what the page writes, settings and the page of methods."""
    (command,) = indented("python -m pytest")
    assert command[4:] == ["-k", NAME]
    files = [f"tests/methods/test_{NAME}.py", "tests/methods/test_methods_page.py"]
    files += ["tests/pipelines/test_conf.py", "-k", f"{NAME} or page or params_are_the_composed"]
    quick = ["-q", "-n", "0", "-p", "no:cacheprovider"]
    said = python(followed.folder, *command[1:4], *files, *quick)
    # 36 cases of the contract for each method, six of the formula, four of the other files.
    assert int(re.search(r"(\d+) passed", said)[1]) >= 46, said
    assert not re.search(r"failed|skipped|error", said)
    assert f"| `{NAME}` |" in (followed.folder / "docs/methods.md").read_text()


def test_its_style_is_that_of_the_suite(followed, python):
    files = [path for path in followed.files if path.endswith(".py")]
    python(followed.folder, "-m", "ruff", "check", "--no-cache", *files)
    python(followed.folder, "-m", "ruff", "format", "--no-cache", "--check", *files)
