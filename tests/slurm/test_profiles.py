"""Profiles: the files shipped are valid, which one is taken, and jobs ask for what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slurm import profile as module
from slurm.errors import SlurmError
from slurm.profile import (
    PROFILES,
    STAGES,
    Profile,
    Resources,
    load_profile,
    read_profile,
)

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(PROFILES.glob("*.yaml"))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a profile into the working directory, so that messages call it 'mine.yaml'."""
    monkeypatch.chdir(tmp_path)

    def written(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.fixture
def machine(monkeypatch):
    """Says whether there is an sbatch, and no OFQ_PROFILE."""
    monkeypatch.delenv("OFQ_PROFILE", raising=False)

    def with_sbatch(there):
        which = {"sbatch": "/usr/bin/sbatch"} if there else {}
        monkeypatch.setattr(module.shutil, "which", which.get)

    return with_sbatch


def message_of(call, *arguments):
    with pytest.raises(SlurmError) as caught:
        call(*arguments)
    return str(caught.value)


# The files shipped


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profiles_are_valid(path):
    profile = read_profile(path)
    assert profile.name == path.stem
    for stage in STAGES:
        assert profile.resources_of(stage).minutes > 0


def test_shipped_profiles_are_these():
    assert [path.stem for path in SHIPPED] == ["generic", "local", "template"]
    assert read_profile(PROFILES / "local.yaml").executor == "in_place"


def test_generic_asks_for_little():
    generic = read_profile(PROFILES / "generic.yaml")
    grid = generic.resources_of("grid")
    assert (grid.tasks, grid.cpus, grid.memory_gb, grid.minutes) == (1, 2, 4, 60)
    assert all(generic.resources_of(stage).gpus_per_node == 0 for stage in STAGES)
    assert generic.setup == []
    assert generic.python is None


def test_template_has_every_key():
    raw = yaml.safe_load((PROFILES / "template.yaml").read_text())
    assert set(raw) == set(Profile.model_fields) - {"name"}
    assert set(raw["resources"]) == set(Resources.model_fields)


def test_template_names_every_stage_and_default():
    text = (PROFILES / "template.yaml").read_text()
    assert all(stage in text for stage in STAGES)
    for model in (Profile, Resources):
        for key, field in model.model_fields.items():
            if isinstance(field.default, bool | int | float) or key in ("time", "on_interrupt"):
                # The comment above or beside the key; it ends at the key before it.
                before, beside = re.search(
                    rf"((?:^ *#.*\n)*)^ *{key}:(.*)$", text, re.MULTILINE
                ).groups()
                assert f"[{str(field.default).lower()}]" in before + beside, key


def test_docs_name_every_key():
    text = (ROOT / "docs" / "slurm.md").read_text()
    for key in {*Profile.model_fields, *Resources.model_fields} - {"name"}:
        assert f"`{key}`" in text, key


def test_stages_are_those_of_dvc():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {*STAGES} == {*stages, "sweep"}


# Which profile


def test_local_without_slurm_and_generic_with(machine):
    machine(False)
    assert load_profile().name == "local"
    machine(True)
    assert load_profile().name == "generic"


def test_argument_before_environment_before_default(machine, monkeypatch):
    machine(True)
    monkeypatch.setenv("OFQ_PROFILE", "local")
    assert load_profile().name == "local"
    assert load_profile("generic").name == "generic"
    monkeypatch.setenv("OFQ_PROFILE", "")
    assert load_profile().name == "generic"


@pytest.mark.parametrize("name", ["mine.yaml", "./mine.yaml", "{absolute}"])
def test_a_path_is_a_file_anywhere(machine, write, name):
    machine(False)
    path = write("executor: in_place")
    assert load_profile(name.format(absolute=path)).name == "mine"


def test_a_name_is_never_a_file_of_the_working_directory(machine, write):
    machine(True)
    write("executor: in_place", "generic.yaml")
    assert load_profile("generic").executor == "slurm"


def test_missing_profile_lists_those_there_are(machine, monkeypatch):
    machine(True)
    there = "(profiles: generic, local, template; or the path of a file)"
    assert message_of(load_profile, "genric") == (
        f"--profile = 'genric': there is no such profile, did you mean 'generic'? {there}"
    )
    monkeypatch.setenv("OFQ_PROFILE", "conf/x.yaml")
    assert message_of(load_profile) == (
        f"OFQ_PROFILE = 'conf/x.yaml': there is no such file {there}"
    )


def test_a_home_that_is_nobodys(machine):
    machine(True)
    assert "there is no such file" in message_of(load_profile, "~nobody-of-this-name/x.yaml")


def test_no_profiles_at_all(machine, tmp_path):
    machine(False)
    assert "(profiles: none; or the path of a file)" in message_of(load_profile, None, tmp_path)


def test_slurm_is_missing(machine):
    machine(False)
    assert message_of(load_profile, "generic") == (
        "profile generic needs SLURM, but there is no sbatch on this machine: "
        "log in to a node that has it, or set OFQ_PROFILE=local"
    )


@pytest.mark.parametrize("executor", ["slurm", "local", "debug"])
def test_submitit_is_missing(machine, write, monkeypatch, executor):
    machine(True)
    write(f"executor: {executor}")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert message_of(load_profile, "mine.yaml") == (
        "profile mine needs submitit, which is not installed: "
        "make setup, or pip install -e '.[suite]', or set OFQ_PROFILE=local"
    )
    assert load_profile("local").executor == "in_place"


def test_submitit_is_not_imported():
    code = (
        "import sys, slurm.profile as p; p.load_profile('local'); print('submitit' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


# Values as written


def test_values_are_taken_as_written(write):
    text = """
executor: slurm
resources: {account: 00123, time: 4:00:00, memory_gb: 1.5}
environment: {A: yes, B: 022, C: 1.10, D: 1:30, E: "", F: null-ish, G: ~/x, H: 2026-01-01}
requeue: no
setup: [n]
"""
    profile = read_profile(write(text))
    assert profile.resources.account == "00123"
    assert profile.resources.minutes == 240
    assert profile.resources.memory_gb == 1.5
    taken = ["yes", "022", "1.10", "1:30", "", "null-ish", "~/x", "2026-01-01"]
    assert profile.environment == dict(zip("ABCDEFGH", taken, strict=True))
    assert profile.requeue is False
    assert profile.setup == ["n"]


def test_keys_with_nothing_after_them_have_their_defaults(write):
    text = "executor: slurm\nresources:\nstages:\n  grid:\nsetup:\npython: null\nenvironment: ~\n"
    assert read_profile(write(text)) == Profile(name="mine", executor="slurm")


def test_profiles_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Resources().nodes = 2  # type: ignore[misc]
    assert len({Resources(), Resources(nodes=1), Resources(nodes=2)}) == 2
