"""How a command ends: exit status and what it says."""

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ofq_core.errors import DataError, TrainingStopped
from pipelines import stage
from pipelines.stage import large_imports, stage_main
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
# Every way in which a command of the suite is run.
PRINTS = {
    "stage": "from pipelines.stage import stage_main as run; run(lambda argv: print(text), [])",
    "evaluate": "from ofq_core.evaluate import command as run; run(lambda argv: print(text))",
    "slurm": "from slurm.errors import command_main as run; run(lambda argv: print(text), [])",
    "tables": "from tables.errors import command_main as run; run(lambda: print(text) or 0)",
}
TABLE = ("tables.render", "--show", "--out", "tables/reference/digits_full/rendered")


def ended(error, capsys):
    def run(argv):
        assert argv == ["--seed", "0"]
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as end:
        stage_main(run, ["--seed", "0"])
    out, err = capsys.readouterr()
    assert out == ""
    return end.value.code, err


def test_success_is_silent(capsys, monkeypatch):
    # Without the interpreter's own farewell, which would end this process too.
    monkeypatch.setattr(os, "_exit", sys.exit)
    assert ended(None, capsys) == (0, "")


def test_a_mistake_of_the_user_is_one_message(capsys):
    assert ended(DataError("data: gone"), capsys) == (1, "error: data: gone\n")


def test_what_the_system_refuses_is_one_message(capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "results/history.csv")
    assert ended(full, capsys) == (1, "error: results/history.csv: No space left on device\n")
    assert ended(OSError("odd"), capsys) == (1, "error: odd\n")


def test_interrupted(capsys):
    """The shell's own status for Ctrl-C, and how to go on."""
    code, err = ended(KeyboardInterrupt(), capsys)
    assert (code, err) == (130, "interrupted: run the same command again to go on\n")


def test_stopped_on_request(capsys, monkeypatch):
    """SIGTERM's own status, the message as it is, and at once: workers are not waited for."""
    monkeypatch.setattr(os, "_exit", sys.exit)
    stopped = TrainingStopped("stopped on request after epoch 3, step 12; run it again")
    said = "stopped on request after epoch 3, step 12; run it again\n"
    assert ended(stopped, capsys) == (143, said)


def test_stopped_in_another_process(capsys, monkeypatch):
    """It says nothing, and gives the main process the time to."""
    waited = []
    monkeypatch.setattr(stage.time, "sleep", waited.append)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ended(TrainingStopped("stopped"), capsys) == (143, "")
    assert waited == [stage.STOP_PATIENCE_SECONDS]


def test_a_mistake_of_ours_keeps_its_traceback():
    def broken(argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage_main(broken, [])


def test_another_process_waits_for_the_main_one_to_say_the_same(capsys, monkeypatch):
    """And is ended meanwhile by the launcher; if it is not, the error is its own."""
    waited = []
    monkeypatch.setattr(stage.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ended(DataError("data: gone"), capsys) == (1, "error: process 3: data: gone\n")
    assert waited == [stage.PATIENCE_SECONDS]
    assert ended(KeyboardInterrupt(), capsys) == (130, "")
    monkeypatch.setenv("RANK", "0")
    assert ended(DataError("data: gone"), capsys) == (1, "error: data: gone\n")
    assert len(waited) == 1


# What stands behind the name of a command

ALONE = ("check", "prepare", "fit", "teacher", "qat", "evaluate", "noise", "tables")
WITH_ARGUMENTS = ("full_precision", "grid", "params", "processes", "tracking")
ELSEWHERE = (
    *(f"slurm.{name}" for name in ("run", "submit", "status", "logs", "cancel", "sweep")),
    *(f"tables.{name}" for name in ("render", "reference", "readme")),
    *("ofq_core.toy", "ofq_core.backbone_cost"),
)


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize(
    "module", [*(f"pipelines.{name}" for name in ALONE + WITH_ARGUMENTS), *ELSEWHERE]
)
def test_help_does_nothing_but_help(word, module, settings_only, command, snapshot):
    before = snapshot(settings_only)
    done = command(settings_only, module, word)
    assert (done.code, done.err) == (0, "")
    assert f"python -m {module}" in done.out
    assert snapshot(settings_only) == before


@pytest.mark.parametrize("words", [("--epochs", "1"), ("quant.wbits=3",)])
@pytest.mark.parametrize("stage", ALONE)
def test_arguments_that_a_stage_does_not_take(stage, words, settings_only, command, snapshot):
    before = snapshot(settings_only)
    done = command(settings_only, f"pipelines.{stage}", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith(f"python -m pipelines.{stage}: error: ")
    assert snapshot(settings_only) == before


def test_imports_are_not_searched_for_garbage():
    try:
        with large_imports():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() > len(kept)
    finally:
        gc.unfreeze()


def test_a_failed_import_leaves_the_search_as_it_was():
    try:
        with pytest.raises(ModuleNotFoundError), large_imports():
            import no_such_module  # noqa: F401
        assert gc.isenabled()
        gc.disable()
        with large_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def python(*words, stdout=subprocess.PIPE, encoding="utf-8"):
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": ""},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("kind", PRINTS)
def test_a_terminal_that_lacks_characters(kind):
    code = "text = '2 \\u00b1 1 \\u2192 caf\\u00e9'; " + PRINTS[kind]
    done = python("-c", code, encoding="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"2 ? 1 ? caf?\n", b"")


@pytest.mark.parametrize(("encoding", "sign"), [("ascii", b"?"), ("latin-1", b"\xb1")])
def test_the_table_on_such_a_terminal(encoding, sign):
    """As `make repro` ends."""
    done = python("-m", *TABLE, encoding=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"88.42 %b 1.53 (5)" % sign in done.stdout


@pytest.fixture
def unread():
    """The end of a pipe whose reader has gone."""
    reads, writes = os.pipe()
    os.close(reads)
    yield writes
    os.close(writes)


@pytest.mark.parametrize("kind", PRINTS)
def test_output_that_nobody_reads(kind, unread):
    """As `... | head`: the shell's own status, and not a word."""
    done = python("-c", f"text = 'a line'; {PRINTS[kind]}", stdout=unread)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("kind", PRINTS)
def test_output_on_a_full_disk(kind):
    with open("/dev/full", "w") as full:
        done = python("-c", f"text = 'a line'; {PRINTS[kind]}", stdout=full)
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


@pytest.mark.parametrize("kind", PRINTS)
def test_output_that_is_closed(kind):
    code = f"text = 'a line'; {PRINTS[kind]}"
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_table_that_nobody_reads(unread):
    done = python("-m", *TABLE, stdout=unread)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_pipe_that_breaks_is_an_error(capsys):
    assert ended(BrokenPipeError(errno.EPIPE, "Broken pipe"), capsys) == ("error: Broken pipe", "")


def test_a_rank_without_a_world_is_left_over(monkeypatch):
    """No process is waited for, and the message is the main one's."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert stage.is_main()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not stage.is_main()
