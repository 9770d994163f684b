"""An edit while a stage runs: DVC would record it for the result of what was there before."""

import os
import shutil
from pathlib import Path

import pytest

from pipelines.unchanged import ChangedError, OutputError, begin, check_unchanged, read_definition

CELL = ("--method", "ofq", "--bits", "2", "--seed", "0")


@pytest.fixture
def work(settings_only, monkeypatch):
    """A folder with some of what stages depend on."""
    monkeypatch.chdir(settings_only)
    for name in ("ofq_core/nn/weight.py", "ofq_core/data/open.py", "results/teacher/teacher.pt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("one")
    return settings_only


def edit(name, old, new):
    path = Path(name)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


READ = {
    "a setting": (
        "qat",
        (),
        lambda: edit("params.yaml", "\nseed: 0\n", "\nseed: 7\n"),
        "params.yaml: seed was 0, is 7",
    ),
    "a nested setting": (
        "qat",
        (),
        lambda: edit("params.yaml", "  wbits: 2\n", "  wbits: 5\n"),
        "params.yaml: quant.wbits was 2, is 5",
    ),
    "a setting that is gone": (
        "qat",
        (),
        lambda: edit("params.yaml", "\nseed: 0\n", "\n"),
        "params.yaml: seed was 0, is nothing",
    ),
    "settings that are no YAML": (
        "qat",
        (),
        lambda: edit("params.yaml", "\nseed: 0\n", "\nseed: [\n"),
        "not all of it can be read any more (params.yaml: no valid YAML: line ",
    ),
    "a setting of another type": (
        "qat",
        (),
        lambda: edit("params.yaml", "\nseed: 0\n", "\nseed: 0.0\n"),
        "params.yaml: seed was 0, is 0.0",
    ),
    "any setting": (
        "check",
        (),
        lambda: edit("params.yaml", "\nseed: 0\n", "\nseed: 7\n"),
        "params.yaml: seed was 0, is 7",
    ),
    "code": (
        "qat",
        (),
        lambda: edit("ofq_core/nn/weight.py", "one", "two"),
        "ofq_core/nn/weight.py was MD5 f97c5d29, is MD5 b8a9f715",
    ),
    "code of one package": (
        "prepare",
        (),
        lambda: edit("ofq_core/data/open.py", "one", "two"),
        "ofq_core/data/open.py was MD5 f97c5d29, is MD5 b8a9f715",
    ),
    "new code": (
        "qat",
        (),
        lambda: Path("ofq_core/new.py").write_text("one"),
        "ofq_core/new.py was nothing, is MD5 f97c5d29",
    ),
    "what another stage made": (
        "grid",
        CELL,
        lambda: Path("results/teacher/teacher.pt").unlink(),
        "results/teacher/teacher.pt was MD5 f97c5d29, is nothing",
    ),
    "the method of a cell": (
        "grid",
        CELL,
        lambda: edit("params.yaml", "\n  ofq:\n", "\n  ofq2:\n"),
        "methods.ofq.",
    ),
}
NOT_READ = {
    "another title": ("prepare", (), lambda: edit("params.yaml", "\nseed: 0\n", "\nseed: 7\n")),
    "the experiment": ("grid", CELL, lambda: edit("params.yaml", "\nseed: 0\n", "\nseed: 7\n")),
    "another method": ("grid", CELL, lambda: edit("params.yaml", "\n  lsq:\n", "\n  lsq2:\n")),
    "a comment": ("qat", (), lambda: edit("params.yaml", "\nseed: 0\n", "\n# !\nseed: 0\n")),
    "a plot": ("qat", (), lambda: edit("dvc.yaml", "title: Loss of the", "title: The loss of the")),
    "code elsewhere": ("prepare", (), lambda: edit("ofq_core/nn/weight.py", "one", "two")),
    "a time": ("qat", (), lambda: os.utime("ofq_core/nn/weight.py", (1, 1))),
    "bytecode": (
        "qat",
        (),
        lambda: (Path("ofq_core/__pycache__").mkdir(), Path("ofq_core/__pycache__/x.pyc").touch()),
    ),
    "no stage of DVC's": ("params", (), lambda: edit("params.yaml", "\nseed: 0\n", "\nseed: 7\n")),
}


@pytest.mark.parametrize("case", READ)
def test_what_a_stage_reads_may_not_change(case, work):
    stage, argv, change, message = READ[case]
    begin(stage, list(argv))
    check_unchanged()
    kept = shutil.copytree(work, work.parent / "kept")
    change()
    with pytest.raises(ChangedError) as raised:
        check_unchanged()
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    shutil.rmtree(work)
    shutil.copytree(kept, work)
    os.chdir(work)
    check_unchanged()


@pytest.mark.parametrize("case", NOT_READ)
def test_other_changes_do_not_matter(case, work):
    stage, argv, change = NOT_READ[case]
    begin(stage, list(argv))
    change()
    check_unchanged()


def test_many_changes_are_counted(work):
    begin("qat", [])
    for index in range(8):
        Path(f"ofq_core/new{index}.py").touch()
    with pytest.raises(ChangedError, match="; and 3 more"):
        check_unchanged()


@pytest.mark.parametrize("argv", [CELL, ("--method=ofq", "--bits=2", "--seed=0")])
def test_a_definition_is_filled_in(argv, work):
    found = read_definition("grid", list(argv))
    assert "methods.ofq" in found.params
    assert "data/digits" in found.deps
    assert read_definition("full_precision", ["--seed", "3"]).outs == ["results/smoke/fp-w32a32-s3"]
    assert "results/experiment/env.json" in read_definition("qat", []).outs


# The stages

EDITS = {
    "check": ("params.yaml", "\nseed: 0\n", "\nseed: 7\n", None),
    "prepare": ("params.yaml", "split_seed: 0", "split_seed: 1", None),
    "teacher": ("params.yaml", "test_share: 0.2", "test_share: 0.25", "results/teacher"),
    "grid": ("params.yaml", "\n  temperature: ", "\n  temperature: 1", "results/smoke"),
    "qat": ("params.yaml", "\nseed: 0\n", "\nseed: 7\n", "results/experiment"),
}


@pytest.mark.parametrize("stage", EDITS)
def test_no_result_of_a_stage_is_handed_over(stage, workspace, command, snapshot):
    file, old, new, result = EDITS[stage]
    words = (f"pipelines.{stage}", *(CELL if stage == "grid" else ()))
    before = snapshot(workspace / result) if result else None
    done = command(workspace, "tests.pipelines.meddling", file, old, new, *words)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: what this stage reads has changed while")
    assert "Traceback" not in done.err
    if result:
        assert snapshot(workspace / result) == before
    if stage not in ("check", "prepare"):
        assert len(list(workspace.glob(".partial/*/checkpoint.pt"))) == 1
    text = (workspace / file).read_text()
    (workspace / file).write_text(text.replace(new, old))
    done = command(workspace, *words)
    assert done.code == 0, done.err
    if stage not in ("check", "prepare"):
        assert ": cut off before, going on after" in done.out
    assert not list(workspace.glob(".partial/*"))


def test_an_evaluation_is_not_handed_over(workspace, command):
    assert command(workspace, "pipelines.qat").code == 0
    edited = ("results/experiment/history.csv", "epoch,phase", "phase,epoch")
    done = command(workspace, "tests.pipelines.meddling", *edited, "pipelines.evaluate")
    assert done.code == 1
    assert "error: what this stage reads has changed while it ran: results/experiment/" in done.err
    assert not (workspace / "results/experiment/metrics.json").exists()


# Where results go


@pytest.mark.parametrize(
    ("stage", "link"),
    [
        ("qat", "results"),
        ("qat", "results/experiment"),
        ("teacher", "results"),
        ("prepare", "data"),
    ],
)
def test_a_link_out_of_the_repository(stage, link, work, tmp_path, monkeypatch):
    """DVC refuses what is made there, after it was made."""
    (work / ".git").mkdir()
    shutil.rmtree(work / link, ignore_errors=True)
    (work / link).symlink_to(tmp_path)
    begin(stage, [])
    monkeypatch.setenv("DVC_STAGE", stage)
    with pytest.raises(OutputError, match=f"^{link} is a link to {tmp_path}, out of the repo"):
        begin(stage, [])


def test_a_link_within_the_repository(work, monkeypatch):
    (work / ".git").mkdir()
    shutil.rmtree(work / "results")
    (work / "store").mkdir()
    (work / "results").symlink_to("store")
    monkeypatch.setenv("DVC_STAGE", "qat")
    begin("qat", [])


def test_a_mount_point_cannot_be_replaced(work, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "teacher")
    begin("qat", [])
    with pytest.raises(OutputError, match="results/teacher is a mount point"):
        begin("teacher", [])
