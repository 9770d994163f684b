"""What jobs ask for: forms of time limits, what single stages override, what submitit is told."""

import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from submitit.slurm import slurm as submitit_slurm

from slurm.errors import SlurmError
from slurm.profile import (
    PROFILES,
    SEVERAL,
    SINGLE,
    STAGES,
    Profile,
    Resources,
    read_profile,
    seconds_of,
)

SHIPPED = sorted(PROFILES.glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    """Writes a profile called 'mine'."""

    def written(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


# Times


@given(days=st.integers(0, 30), h=st.integers(0, 23), m=st.integers(0, 59), s=st.integers(0, 59))
def test_forms_of_one_time(days, h, m, s):
    whole = ((days * 24 + h) * 60 + m) * 60 + s
    forms = {
        f"{days}-{h:02}:{m:02}:{s:02}": whole,
        f"{days}-{h}:{m}": whole - s,
        f"{days}-{h:02}": whole - s - 60 * m,
        f"{days * 24 + h:02}:{m:02}:{s:02}": whole,
        f"{(days * 24 + h) * 60 + m}:{s:02}": whole,
        f"{(days * 24 + h) * 60 + m}": whole - s,
    }
    for form, seconds in forms.items():
        if seconds == 0:
            with pytest.raises(ValueError, match="expected more than no time"):
                seconds_of(form)
            continue
        assert seconds_of(form) == seconds
        minutes = Resources(time=f" {form} ").minutes
        assert 60 * (minutes - 1) < seconds <= 60 * minutes


@given(st.text("0123456789:- ٣", max_size=9))
def test_any_other_text_is_no_time(text):
    try:
        seconds = seconds_of(text)
    except ValueError:
        return
    assert seconds > 0
    assert text.isascii()
    assert " " not in text


@pytest.mark.parametrize(
    "text", ["1:60", "1:60:00", "1-24", "1-", "-5", "1:2:3:4", "UNLIMITED", ""]
)
def test_what_slurm_would_misread_is_refused(text):
    with pytest.raises(ValueError, match="expected minutes"):
        seconds_of(text)


def test_a_number_from_another_yaml_reader_is_explained():
    with pytest.raises(ValueError, match=r"put the time in quotes, such as '04:00:00', or '14400'"):
        Resources(**yaml.safe_load("time: 4:00:00"))


# What a stage asks for

MERGING = """
executor: slurm
resources: {partition: gpu, nodes: 2, gpus_per_node: 8, time: 1-00, memory_gb: 200}
stages:
  grid: {nodes: 1, time: 06:00:00}
  prepare: {partition: null, cpus_per_task: 16}
  evaluate: {gpus_per_node: 0}
"""


def test_stage_overrides_single_keys(write):
    profile = read_profile(write(MERGING))
    qat, grid = profile.resources_of("qat"), profile.resources_of("grid@lsq-2-0")
    assert (qat.tasks, qat.nodes, qat.minutes) == (16, 2, 1440)
    assert (grid.tasks, grid.nodes, grid.minutes, grid.partition) == (8, 1, 360, "gpu")
    assert grid == profile.resources_of("dvc.yaml:grid@ofq-3-1") == profile.resources_of("grid")
    assert profile.resources_of("evaluate").tasks == 2


def test_stages_of_one_process_are_reduced(write):
    profile = read_profile(write(MERGING))
    for stage in SINGLE:
        asked = profile.resources_of(stage)
        assert (asked.nodes, asked.tasks, asked.gpus_per_node) == (1, 1, 0)
        assert asked.memory_gb == 200
    assert profile.resources_of("prepare").partition is None
    assert profile.resources_of("prepare").cpus == 16
    assert all(profile.resources_of(stage).tasks > 1 for stage in SEVERAL)


def test_null_takes_an_explicit_number_of_tasks_back(write):
    text = (
        "executor: slurm\nresources: {gpus_per_node: 4, tasks_per_node: 4}\n"
        "stages: {grid: {gpus_per_node: 2, tasks_per_node: null}}"
    )
    assert read_profile(write(text)).resources_of("grid").tasks == 2


def test_unknown_stage():
    profile = Profile(name="x", executor="slurm")
    with pytest.raises(SlurmError) as caught:
        profile.resources_of("gird@lsq")
    assert str(caught.value) == (
        f"gird@lsq: unknown stage, did you mean 'grid'? (known stages: {', '.join(STAGES)})"
    )


def test_derived_numbers():
    assert (Resources().tasks, Resources().cpus, Resources().minutes) == (1, 5, 240)
    assert Resources(workers=0).cpus == 1
    assert Resources(workers=9, cpus_per_task=3).cpus == 3
    assert Resources(nodes=3, gpus_per_node=4).tasks == 12
    assert Resources(nodes=3, gpus_per_node=4, tasks_per_node=1).tasks == 3


# submitit


def script_of(asked):
    text = submitit_slurm._make_sbatch_string(command="x", folder="/f", map_count=9, **asked)
    flags = (line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line)
    return dict(flag.split("=", 1) for flag in flags)


def test_submitit_takes_what_is_asked():
    asked = Resources(
        partition="gpu",
        account="me",
        qos="high",
        constraint="a100|h100",
        nodes=2,
        gpus_per_node=4,
        workers=7,
        memory_gb=1.5,
        time="01:30",
        array_parallelism=3,
    )
    script = script_of(asked.submitit())
    expected = {
        "partition": "gpu",
        "account": "me",
        "qos": "high",
        "constraint": "'a100|h100'",
        "nodes": "2",
        "gpus-per-node": "4",
        "ntasks-per-node": "4",
        "cpus-per-task": "8",
        "mem": "1536MB",
        "time": "2",
        "array": "0-8%3",
    }
    assert expected.items() <= script.items()


def test_what_is_not_asked_is_left_out():
    assert Resources(memory_gb=0).submitit() == {
        "time": 240,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 5,
        "array_parallelism": 64,
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", STAGES)
def test_submitit_takes_the_shipped_profiles(path, stage):
    assert script_of(read_profile(path).resources_of(stage).submitit())


@pytest.mark.skipif(shutil.which("srun") is None, reason="submitit's executor looks for srun")
def test_submitit_executor_takes_what_is_asked(tmp_path):
    executor = submitit_slurm.SlurmExecutor(tmp_path)
    executor.update_parameters(**Resources(gpus_per_node=1).submitit())
    assert executor._num_tasks() == 1
