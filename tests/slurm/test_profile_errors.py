"""Wrong profiles are explained, and commands end with a message and a status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.errors import SlurmError, did_you_mean
from slurm.profile import STAGES, Resources, read_profile

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a profile into the working directory, so that messages call it 'mine.yaml'."""
    monkeypatch.chdir(tmp_path)

    def written(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def message_of(call, *arguments):
    with pytest.raises(SlurmError) as caught:
        call(*arguments)
    return str(caught.value)


def test_file_that_cannot_be_read(write, tmp_path):
    assert message_of(read_profile, tmp_path) == ".: expected a file"
    path = write("")
    path.write_bytes(b"executor: \xff")
    assert message_of(read_profile, path) == "mine.yaml: no valid YAML: line 1: not UTF-8 text"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "mine.yaml: no valid YAML: line 1: expected the node content"),
        (
            "executor: slurm\nqos: a\nexecutor: local",
            "mine.yaml: no valid YAML: line 3: the key 'executor' stands here twice",
        ),
        (
            "executor: !!python/name:os.system x",
            "mine.yaml: no valid YAML: line 1: 'x' has the tag",
        ),
        ("executor: \x07", "mine.yaml: no valid YAML: the character U+0007"),
        ("", "mine.yaml: empty: expected keys with values"),
        ("- a", "mine.yaml: expected keys with values (`key: value`), found a list"),
        ("name: x", "mine.yaml: name: unknown key, since the file's name is the profile's"),
    ],
)
def test_file_that_is_no_profile(write, text, message):
    assert message_of(read_profile, write(text)).startswith(message)


RESOURCE_KEYS = ", ".join(Resources.model_fields)
STAGE_NAMES = ", ".join(STAGES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("executor: slrum", "executor = 'slrum': expected 'in_place', 'slurm', 'local' or 'debug'"),
        (
            "executor: slurm\nexekutor: a",
            "exekutor: unknown key, did you mean 'executor'? (known keys: executor, resources,",
        ),
        (
            "resources: {partitoin: x}",
            "resources.partitoin: unknown key, did you mean 'partition'?",
        ),
        ("resources: {x: 1}", f"resources.x: unknown key (known keys: {RESOURCE_KEYS})"),
        ("stages: {grid: {tim: 1}}", "stages.grid.tim: unknown key, did you mean 'time'?"),
        (
            "stages: {gird: {time: 60}}",
            f"stages.gird: unknown stage, did you mean 'grid'? (known stages: {STAGE_NAMES})",
        ),
        ("resources: 5", "resources = 5: expected keys with values"),
        ("stages: [grid]", "stages = ['grid']: expected keys with values"),
        ("stages: {grid: gpu}", "stages.grid = 'gpu': expected keys with values"),
        ("resources: {nodes: 0}", "resources.nodes = 0: expected greater than or equal to 1"),
        ("resources: {nodes: two}", "resources.nodes = 'two': expected a whole number"),
        ("resources: {gpus_per_node: -1}", "resources.gpus_per_node = -1: expected greater than"),
        ("resources: {memory_gb: 8GB}", "resources.memory_gb = '8GB': expected a number"),
        ("resources: {memory_gb: .inf}", "resources.memory_gb = '.inf': expected a"),
        ("resources: {nodes: }", "resources.nodes: this key has no value"),
        ("resources: {partition: ''}", "resources.partition = '': expected text, leave the key"),
        ('resources: {qos: "a\\nb"}', "resources.qos = 'a\\nb': expected a single line"),
        (
            "resources: {time: 4h}",
            "resources.time = '4h': expected minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS",
        ),
        ("resources: {time: 0:00}", "resources.time = '0:00': expected more than no time"),
        ("setup: module load cuda", "setup = 'module load cuda': expected a list, one '- ...' a"),
        ("setup: ['  ']", "setup.0 = '  ': expected text"),
        ("python: ''", "python = '': expected text"),
        (
            "environment: {A-B: x}",
            "environment.A-B: no name of an environment variable: expected letters, digits and _",
        ),
        ("environment: {A: }", "environment.A: this key has no value"),
        ("environment: {A: [x]}", "environment.A = ['x']: expected text, in quotes"),
        (
            "environment: {OFQ_WORKERS: 3}",
            "environment.OFQ_WORKERS: set workers under resources or stages instead",
        ),
        ("signal_delay_seconds: 0", "signal_delay_seconds = 0: expected greater than or equal"),
        ("requeue: maybe", "requeue = 'maybe': expected true or false"),
        ("on_interrupt: leav", "on_interrupt = 'leav': expected 'cancel' or 'leave', did you mean"),
        ("poll_seconds: 0", "poll_seconds = 0: expected greater than 0"),
        ("probe_seconds: -1", "probe_seconds = -1: expected greater than or equal to 0"),
        ("max_timeouts: 1.5", "max_timeouts = 1.5: expected a whole number"),
        (
            "resources: {time: 2:00}",
            "resources: time = '2:00' is no longer than signal_delay_seconds = 120, so that jobs "
            "would be told to end as they start",
        ),
        ("stages: {sweep: {time: 1}}", "stages.sweep: time = '1' is no longer than signal_delay"),
        (
            "stages: {grid: {tasks_per_node: 8, gpus_per_node: 4}}",
            "stages.grid: tasks_per_node = 8 with gpus_per_node = 4: "
            "expected at most one task per GPU",
        ),
        (
            "stages: {prepare: {gpus_per_node: 1}}",
            "stages.prepare.gpus_per_node = 1: expected 0, since prepare is one process that uses "
            "no GPU",
        ),
        ("stages: {tables: {nodes: 2}}", "stages.tables.nodes = 2: expected 1, since tables is"),
        ("stages: {check: {tasks_per_node: 2}}", "stages.check.tasks_per_node = 2: expected 1"),
        (
            "executor: local\nresources: {nodes: 2}",
            "resources: nodes = 2: executor local has one node, this machine",
        ),
        (
            "executor: debug\nstages: {qat: {tasks_per_node: 2}}",
            "stages.qat: 2 tasks: executor debug starts one",
        ),
        (
            "executor: in_place\nresources: {gpus_per_node: 2}",
            "resources: 2 tasks: executor in_place starts one; see OFQ_PROCESSES",
        ),
        ("executor: in_place\nsetup: [a]", "setup: no effect with executor in_place: no job"),
        ("executor: in_place\npython: a", "python: no effect with executor in_place: no job"),
    ],
)
def test_wrong_value_is_explained(write, text, message):
    if "executor" not in text:
        text = f"executor: slurm\n{text}"
    assert message_of(read_profile, write(text)).splitlines()[0].startswith(f"mine.yaml: {message}")


def test_all_mistakes_at_once(write):
    text = "resources: {nodes: 0}\nstages: {prepare: {nodes: 2}, gird: {}}"
    assert message_of(read_profile, write(text)).splitlines() == [
        "mine.yaml: executor: this key is missing",
        "mine.yaml: resources.nodes = 0: expected greater than or equal to 1",
        "mine.yaml: stages.gird: unknown stage, did you mean 'grid'? "
        f"(known stages: {STAGE_NAMES})",
    ]
    text = "executor: slurm\nstages: {prepare: {nodes: 2}, qat: {time: 1}}"
    assert len(message_of(read_profile, write(text)).splitlines()) == 2


def test_a_mistake_in_the_defaults_is_told_once(write):
    text = "executor: slurm\nresources: {time: 1}\nstages: {qat: {nodes: 2}, grid: {nodes: 2}}"
    assert len(message_of(read_profile, write(text)).splitlines()) == 1


COMMAND = """
import sys
from slurm.errors import SlurmError, command_main
def run(argv):
    {body}
command_main(run, sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("return None", 0, ""),
        ("return 7", 7, ""),
        ("raise SlurmError('no such job')", 1, "error: no such job\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("sys.exit(2)", 2, ""),
        ("raise ValueError('defect')", 1, "ValueError: defect\n"),
    ],
)
def test_command_ends_with_a_status_and_a_message(body, status, error):
    code = [sys.executable, "-c", COMMAND.format(body=body)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (status, error.splitlines())


@pytest.mark.parametrize(
    "body", ["print('x' * 9)", "print('x' * 10**6)", "print('x'); sys.exit(0)"]
)
def test_command_whose_reader_went_away_is_quiet(body):
    reader, writer = os.pipe()
    os.close(reader)
    code = [sys.executable, "-c", COMMAND.format(body=body)]
    done = subprocess.run(
        code, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_did_you_mean():
    assert did_you_mean("gird", STAGES) == ", did you mean 'grid'?"
    assert did_you_mean("xyz", STAGES) == ""
