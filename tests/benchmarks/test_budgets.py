"""The gate on operators, saved bytes and peaks: what CI checks, and that it can fail."""

import copy

import pytest

from benchmarks import budgets
from benchmarks.budgets import Configuration, configurations, differences, measure, read
from benchmarks.counting import count


@pytest.fixture(scope="module")
def known():
    """The committed budgets."""
    version, numbers = read()
    if version != budgets.torch_version():
        pytest.skip(f"the budgets are of torch {version}, this is {budgets.torch_version()}")
    return numbers


@pytest.mark.parametrize("size", ["micro", "deit_tiny"])
def test_every_step_costs_what_its_budget_says(size, known):
    chosen = [each for each in configurations() if each.size == size]
    ours = {name: numbers for name, numbers in known.items() if name.split("/")[0] == size}
    assert differences(measure(chosen), ours) == []


def test_one_more_operator_and_tensor_fail(known):
    """A step that does a little more than it should, on top of the real one."""
    configuration = Configuration("micro", "statsq")
    step = configuration.step()
    for block in step.model.blocks:
        block.register_forward_hook(lambda module, inputs, output: output.exp().log())
    found = differences({configuration.name: count(step).as_dict()}, only(known, configuration))
    assert {line.split(": ")[1].split()[0] for line in found} == {
        "forward",
        "backward",
        "saved_bytes",
        "peak_bytes",
    }
    assert all("above its budget" in line for line in found)


def only(numbers, configuration):
    return {configuration.name: numbers[configuration.name]}


def test_what_costs_less_fails_with_the_command_to_lower_the_budget(known):
    measured = copy.deepcopy(known)
    measured["micro/lsq"]["saved_bytes"] -= 4
    (line,) = differences(measured, known)
    assert line.startswith("micro/lsq: saved_bytes")
    assert line.endswith("lower it: python -m benchmarks.budgets --write")


def test_a_configuration_without_a_budget_fails(known):
    fewer = {name: numbers for name, numbers in known.items() if name != "micro/lsq"}
    assert "no budget" in differences(known, fewer)[0]
    assert "no configuration" in differences(fewer, known)[0]


@pytest.mark.parametrize(("more", "fails"), [(0, False), (1, True), (-1, True)])
def test_the_command_exits_by_the_budgets(more, fails, known, monkeypatch):
    measured = copy.deepcopy(known)
    measured["micro/statsq_qkr"]["backward"] += more
    monkeypatch.setattr(budgets, "measure", lambda chosen: measured)
    monkeypatch.setattr("sys.argv", ["budgets"])
    with pytest.raises(SystemExit) as stopped:
        budgets.main()
    assert bool(stopped.value.code) == fails


def test_budgets_are_written_as_they_are_read(tmp_path, known):
    path = tmp_path / "budgets.json"
    budgets.write(known, path)
    assert read(path) == (budgets.torch_version(), known)
    assert path.read_text() == budgets.PATH.read_text()


def test_counts_are_the_same_again():
    configuration = Configuration("micro", "statsq_qkr", "tracker_sample")
    assert count(configuration.step()) == count(configuration.step())
