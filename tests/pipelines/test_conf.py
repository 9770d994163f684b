"""conf/, params.yaml and dvc.yaml agree with each other and with the code."""

import shutil
from pathlib import Path

import pytest
import yaml

from ofq_core.explain import validated
from ofq_core.settings import (
    BUNDLES,
    DistillSettings,
    FidelitySettings,
    GridSettings,
    QuantSettings,
    RecipeChoice,
    RunSettings,
    StudySettings,
    TeacherSettings,
)
from pipelines.params import load_study

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf/preset").glob("*.yaml"))
METHODS = sorted(path.stem for path in (ROOT / "conf/method").glob("*.yaml"))
MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Modules of tables/ on which what the stage writes does not depend.
NOT_RENDERING = {
    "__init__.py": "a docstring",
    "errors.py": "an exception",
    "readme.py": "a command of its own",
    "reference.py": "a command of its own",
}


@pytest.fixture
def compose(settings_only, command):
    def run(*overrides):
        done = command(settings_only, "pipelines.params", *overrides)
        assert done.code == 0, done.err
        return settings_only / "params.yaml"

    return run


def test_params_are_the_composed_conf(compose):
    """params.yaml is never edited by hand: `make params` gives the committed file."""
    composed = yaml.safe_load(compose().read_text())
    committed = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert composed == committed


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset, compose):
    study = load_study(compose(f"preset={preset}"))
    names = [run.name for run in study.runs_of_grid()]
    assert len(set(names)) == len(names) > 0
    assert study.study == preset, "results of two presets never share a folder"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_says_how_to_run_it(preset):
    """A comment with the command, as its first lines."""
    lines = (ROOT / f"conf/preset/{preset}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert any(line.startswith("# Command: ") for line in lines[1:4])


def test_a_preset_may_not_hide_what_is_dialled(compose):
    """`-S preset=smoke -S quant.wbits=3` means both."""
    study = load_study(compose("preset=smoke", "quant.wbits=3", "recipe.epochs=7"))
    assert (study.study, study.quant.wbits, study.recipe.epochs) == ("smoke", 3, 7)
    assert study.quant.abits == 3, "activations follow the weights"
    study = load_study(compose("quant.wbits=3", "quant.abits=4"))
    assert (study.quant.wbits, study.quant.abits) == (3, 4)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_setting_can_be_dialled(preset, compose):
    """`-S recipe.mixup=0.8` needs an entry in conf/, be it null."""
    composed = yaml.safe_load(compose(f"preset={preset}").read_text())
    for section, model in {
        "recipe": RecipeChoice,
        "fidelity": FidelitySettings,
        "quant": QuantSettings,
        "distill": DistillSettings,
        "grid": GridSettings,
        "teacher": TeacherSettings,
    }.items():
        assert set(composed[section]) == set(model.model_fields), section


@pytest.mark.parametrize("fidelity", sorted(BUNDLES))
def test_the_fidelity_files_are_the_bundles(fidelity, compose):
    assert load_study(compose(f"fidelity={fidelity}")).fidelity == BUNDLES[fidelity]
    raw = yaml.safe_load((ROOT / f"conf/fidelity/{fidelity}.yaml").read_text())
    assert list(raw) == list(BUNDLES[fidelity].model_dump()), "every switch, in their order"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_selectable_and_named_after_itself(method, compose):
    study = load_study(compose(f"method={method}"))
    assert study.experiment().method == method
    assert method in study.methods
    cell = study.cell(method, study.quant.wbits, study.seed)
    assert cell == study.experiment(), "a cell and the dialled experiment are the same run"


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_selectable(model, compose):
    assert load_study(compose(f"model={model}")).model.name.startswith(model.split("_")[0])


def test_all_methods_of_a_study_share_everything_else(compose):
    study = load_study(compose())
    runs = [study.cell(method, 2, 0).model_dump() for method in study.grid.methods]
    for run in runs:
        del run["method"]
        for toggle in ("weight", "qkr", "cga"):
            del run["quant"][toggle]
    assert all(run == runs[0] for run in runs)


# dvc.yaml


def test_the_tables_stage_depends_on_every_file_that_renders():
    deps = STAGES["tables"]["deps"]
    wanted = {f"tables/{path.name}" for path in (ROOT / "tables").glob("*.py")}
    wanted -= {f"tables/{name}" for name in NOT_RENDERING}
    assert wanted <= set(deps), "a change of these would not render again"
    assert {"tables/published.yaml", "tables/specs", "tables/templates"} <= set(deps)


def test_what_is_left_out_does_not_render():
    rendering = (ROOT / "tables").glob("*.py")
    for path in rendering:
        if path.name not in NOT_RENDERING:
            assert "tables.reference" not in path.read_text(), path.name


def test_dependencies_exist():
    made = {out for stage in STAGES.values() for out in stage["outs"]}
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            if not dep.startswith(("data/", "results/")):
                assert (ROOT / dep).exists(), f"{name}: {dep}"
        assert not made & {"tables", "ofq_core"}


def test_every_stage_goes_through_slurm_run():
    for name, stage in STAGES.items():
        module = {"rivals": "grid", "variants": "grid"}.get(name, name)
        assert stage["cmd"].startswith(f"python -m slurm.run -- python -m pipelines.{module}"), name


@pytest.mark.parametrize("name", ["rivals", "variants"])
def test_other_cells_are_made_as_those_of_the_grid(name):
    """Their lists of methods, bit widths and seeds are all that differs."""
    grid, other = dict(STAGES["grid"]), dict(STAGES[name])
    assert other.pop("desc") != grid.pop("desc")
    matrix = {
        key: text.replace("grid.", f"grid.{name}.") for key, text in grid.pop("matrix").items()
    }
    assert other.pop("matrix") == matrix
    assert other == grid


@pytest.mark.parametrize("name", ["teacher", "full_precision", "grid", "qat"])
def test_training_stages_depend_on_the_science_and_the_data(name):
    deps = STAGES[name]["deps"]
    assert {"ofq_core", "data/${data.name}", "pipelines/training.py"} <= set(deps)
    assert f"pipelines/{name}.py" in deps
    assert ("results/teacher/teacher.pt" in deps) == (name in {"grid", "qat"})


def leaves(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix}
    return {leaf for key in value for leaf in leaves(value[key], f"{prefix}.{key}".lstrip("."))}


# What a key of a run's settings is called among the parameters of its stage, where that differs;
# None where the command or the code decides it (`method` is derived from the toggles).
TOGGLES = dict.fromkeys(
    ["quant.weight", "quant.qkr", "quant.cga", "quant.options"], "methods.${item.method}"
)
COMMON = ["quant.edge_bits", "quant.boundary_range"]
CALLED = {
    "teacher": {
        **dict.fromkeys(["recipe", "seed"], "teacher"),
        **dict.fromkeys(["method", "quant", "distill"]),
    },
    "full_precision": {
        "recipe": "teacher.recipe",
        **dict.fromkeys(["method", "seed", "quant", "distill"]),
    },
    "grid": {
        **TOGGLES,
        **dict.fromkeys(COMMON, "grid.quant"),
        **dict.fromkeys(["method", "seed", "quant.wbits", "quant.abits"]),
    },
    "qat": {"method": None},
}


@pytest.mark.parametrize("stage", CALLED)
def test_a_stage_lists_the_settings_that_decide_its_runs(stage, compose):
    """Keys come from the settings themselves, so a new setting that is not listed is found."""
    study = load_study(compose())
    run = {
        "teacher": study.full_precision(study.teacher.seed),
        "full_precision": study.full_precision(0),
        "grid": study.cell("ofq", 2, 0),
        "qat": study.experiment(),
    }[stage]
    for key in leaves(run.model_dump()):
        parts = key.split(".")
        above = [".".join(parts[: i + 1]) for i in range(len(parts))]
        names = [CALLED[stage].get(name, name) for name in above]
        known = None in names or set(names) & set(STAGES[stage]["params"])
        assert known, f"{stage} does not depend on {key}"


def test_the_tables_stage_lists_what_names_its_runs():
    grid = {"methods", "bits", "seeds", "full_precision_seeds", "rivals", "variants"}
    assert set(STAGES["tables"]["params"]) == {"study", "methods", *(f"grid.{k}" for k in grid)}


def test_nothing_that_a_run_does_not_read_is_listed(compose):
    """The experiment's dials are no parameter of the grid: they would retrain it."""
    grid = set(STAGES["grid"]["params"])
    assert not grid & {"quant", "seed", "grid", "teacher", "grid.seeds", "methods"}
    assert "grid" not in STAGES["qat"]["params"]


def test_settings_of_a_run_can_be_read_back(compose):
    run = load_study(compose()).experiment()
    assert validated(RunSettings, run.model_dump(mode="json"), "settings.yaml") == run
    assert set(StudySettings.model_fields) >= set(RunSettings.model_fields) - {"method"}


def test_composing_elsewhere_leaves_the_repository_alone(compose, tmp_path):
    committed = (ROOT / "params.yaml").read_bytes()
    compose("preset=smoke")
    assert (ROOT / "params.yaml").read_bytes() == committed
    assert not list(ROOT.glob(".params*"))
    shutil.rmtree(tmp_path)
