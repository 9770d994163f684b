"""How a command ends: exit status and what it says."""

import errno
import gc
import os
import sys

import pytest

from ofq_core.errors import DataError, TrainingStopped
from pipelines import stage
from pipelines.stage import large_imports, stage_main


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
    assert ended(DataError("data: gone"), capsys) == (1, "error: process 3: data: gone\n")
    assert waited == [stage.PATIENCE_SECONDS]
    assert ended(KeyboardInterrupt(), capsys) == (130, "")
    monkeypatch.setenv("RANK", "0")
    assert ended(DataError("data: gone"), capsys) == (1, "error: data: gone\n")
    assert len(waited) == 1


# What stands behind the name of a command

ALONE = ("check", "prepare", "teacher", "qat", "evaluate", "noise", "tables")
WITH_ARGUMENTS = ("full_precision", "grid", "params", "processes", "tracking")
ELSEWHERE = (
    *(f"slurm.{name}" for name in ("run", "submit", "status", "logs", "cancel", "sweep")),
    *(f"tables.{name}" for name in ("render", "reference", "readme")),
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
