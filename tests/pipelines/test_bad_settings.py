"""Wrong settings end every command within a second, in one line, before anything is touched."""

import io
from pathlib import Path

import pytest

from ofq_core.errors import SettingsError
from pipelines.params import check, load_study, main

ROOT = Path(__file__).parents[2]

BITS = "expected 2, 3, 4, 5, 6, 7, 8 or 32"
KNOWN_METHODS = "known are lsq, statsq, statsq_qkr, ofq"

# Dotted key in params.yaml (with __), value, what the message says.
EDITS = [
    ("quant__wbits", 1, [f"quant.wbits = 1: {BITS}"]),
    ("quant__wbits", 9, [f"quant.wbits = 9: {BITS}"]),
    ("quant__wbits", "two", ["quant.wbits = 'two': expected a whole number", "2, 3, 4, 5"]),
    ("quant__wbit", 2, ["quant.wbit: unknown key, did you mean 'wbits'?", "abits, edge_bits"]),
    ("quantt", {}, ["quantt: unknown key, did you mean 'quant'?"]),
    ("grid__methods", ["lsq", "oqf"], ["unknown method 'oqf', did you mean 'ofq'?", KNOWN_METHODS]),
    ("grid__seeds", [], ["grid.seeds = []", "at least 1"]),
    ("grid__bits", [2, 9], ["grid.bits.1 = 9", "2, 3, 4, 5, 6, 7 or 8"]),
    ("recipe__epochs", 0, ["recipe.epochs = 0: expected at least 1"]),
    ("teacher__recipe__epochs", 0, ["teacher.recipe.epochs = 0", "at least 1"]),
    ("seed", -1, ["seed = -1: expected at least 0"]),
    ("model__embed_dim", 15, ["embed_dim = 15 must be a multiple of num_heads = 2"]),
    ("data__name", "mnist", ["data.name = 'mnist': expected 'digits'", "data.source"]),
    ("fidelity__qk_bias", "keep", ["fidelity.qk_bias = 'keep': expected 'fold' or 'drop'"]),
    ("quant__qk_bias", "fold", ["quant.qk_bias: unknown key"]),
    ("recipe__cga_epochs", 0, ["experiment ofq: quant.cga = true, but recipe.cga_epochs = 0"]),
    ("recipe__lr", None, ["recipe.lr: this key is missing"]),
    ("grid__full_precision_seeds", [1, 1], ["full_precision_seeds = [1, 1] names a value twice"]),
    (
        "teacher",
        {"seed": 0, "pretrained": "timm"},
        ["full-precision run with seed 0: teacher.recipe = None", "full_precision_seeds = []"],
    ),
]


@pytest.mark.parametrize(("key", "value", "parts"), EDITS, ids=lambda value: str(value)[:24])
def test_edited_params(
    key, value, parts, settings_only, set_params, command, snapshot, one_message
):
    """The check stage, which DVC runs before every other."""
    set_params(settings_only, **{key: value})
    before = snapshot(settings_only)
    message = one_message(command(settings_only, "pipelines.check"))
    assert message.startswith("params.yaml: ")
    for part in parts:
        assert part in message
    assert snapshot(settings_only) == before


@pytest.mark.parametrize(
    "stage",
    ["prepare", "teacher", "qat", "evaluate", "tables", "full_precision", "grid"],
)
def test_every_stage_checks_first(
    stage, settings_only, set_params, fresh_command, snapshot, one_message
):
    """Run by hand, without the check stage, a stage says the same, and before the slow imports."""
    arguments = {
        "full_precision": ["--seed", "0"],
        "grid": ["--method", "ofq", "--bits", "2", "--seed", "0"],
    }
    set_params(settings_only, quant__wbits="two")
    # The working directory is searched first: this would be imported.
    (settings_only / "torch.py").write_text("raise SystemExit('torch was imported')")
    before = snapshot(settings_only)
    done = fresh_command(settings_only, f"pipelines.{stage}", *arguments.get(stage, []))
    assert "quant.wbits = 'two': expected a whole number" in one_message(done)
    assert snapshot(settings_only) == before


# Overrides of conf/, as `dvc exp run -S` takes them.
OVERRIDES = [
    ("preset=nope", ["unknown preset 'nope'", "known are ", "digits", "imagenet_deit_small"]),
    ("fidelity=relased", ["unknown fidelity 'relased', did you mean 'released'?"]),
    ("fidelity.qkbias=drop", ["fidelity.qkbias: unknown key, did you mean 'qk_bias'?"]),
    ("recipe.by_bits.3.lr=1", ["conf/ has no such entry to change; +recipe.by_bits.3.lr=... adds"]),
    ("preset=smoek", ["unknown preset 'smoek', did you mean 'smoke'?"]),
    ("method=oqf", ["unknown method 'oqf', did you mean 'ofq'?", "known are dampening, freezing"]),
    ("model=deit_mikro", ["unknown model", "did you mean 'deit_micro'?"]),
    ("quant.wbit=3", ["quant.wbit: unknown key, did you mean 'wbits'?", "boundary_range"]),
    ("recipe.epoch=3", ["recipe.epoch: unknown key, did you mean 'epochs'?"]),
    ("quants.wbits=3", ["quants.wbits: unknown key, did you mean 'quant'?"]),
    ("+quant.extra=3", ["quant.extra: unknown key"]),
    ("recipe.epochs=0", ["recipe.epochs = 0: expected at least 1"]),
    ("grid.seeds=[]", ["grid.seeds = []", "at least 1"]),
    ("grid.methods=[oqf]", ["unknown method 'oqf'", KNOWN_METHODS]),
    ("nonsense", ["no setting that can be read: expected key=value"]),
    ("recipe.lr=[", ["no setting that can be read: expected key=value"]),
    ("+study=x", ["conf/ has this entry: leave out the +"]),
    ("~nothing", ["conf/ has no such entry to take away"]),
    ("seed=${nothing}", ["a value that this one or another refers to"]),
    ("quant.options=[1]", ["expected keys with values"]),
    ("study=12e8", ["study = 1200000000.0: expected a text", "in quotes"]),
    ("study=0o10", ["study = 8: expected a text", "in quotes"]),
    ("fidelity.cooldown=yes", ["fidelity.cooldown = 'yes': expected true or false"]),
    ("recipe.cga_epochs=0", ["experiment ofq: quant.cga = true, but recipe.cga_epochs = 0"]),
    ("recipe.cooldown_epochs=3", ["recipe.cooldown_epochs = 3: has no effect"]),
    ("+recipe.by_bits.2.lr=0.1", ["recipe.by_bits.2.lr = 0.1: has no effect", "recipe.lr = 0.006"]),
    ("study=" + "x" * 300, ["study = 'xxx", "...xxx", "at most 100 characters, found 300"]),
]


@pytest.mark.parametrize(("override", "parts"), OVERRIDES, ids=[o[:40] for o, _ in OVERRIDES])
def test_overrides(override, parts, settings_only, command, snapshot, one_message):
    before = snapshot(settings_only)
    message = one_message(command(settings_only, "pipelines.params", override))
    assert message.startswith((f"{override}: ", f"'{override[:100]}")), "says which override"
    assert len(message) < 500
    assert not any(word in message for word in ("Lexer", "overrid", "Hydra", "should", "valid "))
    for part in parts:
        assert part in message
    assert ".draft" not in message
    assert snapshot(settings_only) == before, "params.yaml is as it was, and no draft is left"


# Refused before anything is composed.
UNREADABLE = {
    **dict.fromkeys(
        [
            "",
            " ",
            "=3",
            "study",
            "+study",
            "study=café",
            "study=a=b",
            "study={",
            "study=a\nb",
            "study=\x00",
            "--chekc",
            "-h",
            "quant.wbits=2 seed=3",
            "quant..wbits=3",
            "@=1",
            "seed=" + "9" * 5000,
        ],
        "no setting that can be read: expected key=value",
    ),
    **dict.fromkeys(
        ["seed=1,2", "seed=range(1,3)", "seed=choice(1,2)"], "several values: expected"
    ),
    "x" * 300 + "=1": "no setting that can be read",
    **dict.fromkeys(
        ["hydra.run.dir=x", "+hydra.x=1", "hydra/launcher=basic", "hydra.searchpath=[x]"],
        "hydra: unknown key",
    ),
    "seed=" + "[" * 200 + "]" * 200: "nested too deeply",
    "~seed=1": "conf/ has another value there",
    "data=null": "expected the name of a file in conf/data/",
    "recipe={lr: 1}": "expected the name of a file in conf/recipe/",
}


def test_overrides_that_cannot_be_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = check([[override] for override in UNREADABLE])
    for (override, said), answer in zip(UNREADABLE.items(), found, strict=True):
        message = answer["error"]
        assert said in message, override
        assert len(message) < 500
        assert "\n" not in message


@pytest.mark.parametrize("model", ["deit_tiny", "deit_small", "swin_tiny"])
@pytest.mark.parametrize("bits", [5, 32])
def test_more_bits_than_the_preset_knows(
    model, bits, settings_only, command, snapshot, one_message
):
    """Dialled or in the grid; the settings are left as they were."""
    before = snapshot(settings_only)
    preset = f"preset=imagenet_{model}"
    known = f"quant.wbits = {bits}: recipe.by_bits has a recipe for 2, 3, 4 bits only"
    done = command(settings_only, "pipelines.params", preset, "method=lsq", f"quant.wbits={bits}")
    message = one_message(done)
    assert f"experiment {'lsq' if bits == 5 else 'fp'}: {known}" in message
    assert "or set recipe.batch_size, recipe.lr" in message
    assert snapshot(settings_only) == before


def test_a_grid_that_cannot_run_is_no_fault_of_the_experiment(
    settings_only, command, snapshot, one_message
):
    """What is refused is what will run: each is checked for itself."""
    known = "quant.wbits = 5: recipe.by_bits has a recipe for 2, 3, 4 bits only"
    done = command(
        settings_only, "pipelines.params", "preset=imagenet_deit_tiny", "grid.bits=[2,5]"
    )
    assert done.code == 0
    assert done.err.startswith("note: the experiment can run, the grid cannot: grid cell lsq-5-0: ")
    before = snapshot(settings_only)
    for what, code in (("settings", 0), ("grid", 1)):
        done = command(settings_only, "pipelines.check", "--what", what)
        assert done.code == code, done.err
        assert (settings_only / "data/checked" / what).exists() == (code == 0)
    assert one_message(done).startswith(f"params.yaml: grid cell lsq-5-0: {known}")
    command_line = ["pipelines.grid", "--method", "lsq", "--seed", "0", "--bits"]
    assert known in command(settings_only, *command_line, "5").err
    assert known not in command(settings_only, *command_line, "2").err
    assert known not in command(settings_only, "pipelines.qat").err
    assert before.items() <= snapshot(settings_only).items()


def test_a_recipe_of_other_bits_is_no_fault_of_the_experiment(
    settings_only, set_params, command, one_message
):
    done = command(settings_only, "pipelines.params", "preset=imagenet_deit_tiny")
    assert done.code == 0, done.err
    set_params(settings_only, recipe__by_bits__3__lr=None, recipe__by_bits__4__lr=1e-7)
    assert command(settings_only, "pipelines.check", "--what", "settings").code == 0
    message = one_message(command(settings_only, "pipelines.check", "--what", "grid"))
    assert "grid cell lsq-3-0: recipe.by_bits.3 lacks lr" in message
    set_params(settings_only, grid__bits=[4])
    message = one_message(command(settings_only, "pipelines.check", "--what", "grid"))
    assert "grid cell lsq-4-0: recipe: " in message
    assert "lr = 1e-07" in message


def test_an_experiment_that_cannot_run_is_no_fault_of_the_grid(settings_only, set_params, command):
    """Everything else waits for the experiment, as for what is dialled."""
    set_params(settings_only, recipe__cga_epochs=0, grid__methods=["lsq"])
    for what, code in (("settings", 1), ("grid", 0)):
        assert command(settings_only, "pipelines.check", "--what", what).code == code


@pytest.mark.parametrize("stage", ["check", "qat"])
def test_every_stage_knows_that_a_recipe_is_missing(
    stage, settings_only, set_params, command, snapshot, one_message
):
    done = command(settings_only, "pipelines.params", "preset=imagenet_deit_tiny")
    assert done.code == 0, done.err
    set_params(settings_only, quant__wbits=6)
    before = snapshot(settings_only)
    message = one_message(command(settings_only, f"pipelines.{stage}"))
    assert "experiment ofq: quant.wbits = 6: recipe.by_bits has a recipe for 2, 3, 4" in message
    assert snapshot(settings_only) == before


@pytest.mark.parametrize("bits", ["1", "9", "two"])
def test_bits_are_named_for_weights_and_activations(
    bits, settings_only, command, snapshot, one_message
):
    """quant.abits follows quant.wbits, so both lines are true."""
    before = snapshot(settings_only)
    done = command(settings_only, "pipelines.params", f"quant.wbits={bits}")
    first, second = one_message(done, lines=2).splitlines()
    assert f"quant.wbits = {bits if bits.isdigit() else repr(bits)}: expected" in first
    assert f"quant.abits = {bits if bits.isdigit() else repr(bits)}: expected" in second
    assert snapshot(settings_only) == before


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["grid", "--method", "oqf", "--bits", "2", "--seed", "0"], 1, "did you mean 'ofq'?"),
        (["grid", "--method", "lsq", "--bits", "9", "--seed", "0"], 1, f"quant.wbits = 9: {BITS}"),
        (["grid", "--method", "lsq", "--bits", "2", "--seed", "-1"], 1, "seed = -1: expected"),
        (["full_precision", "--seed", "-1"], 1, "seed = -1: expected"),
        (
            ["grid", "--method", "lsq", "--bits", "two", "--seed", "0"],
            2,
            "invalid int value: 'two'",
        ),
        (["grid"], 2, "the following arguments are required: --method, --bits, --seed"),
    ],
)
def test_arguments_of_a_cell(words, code, part, settings_only, command, snapshot):
    before = snapshot(settings_only)
    done = command(settings_only, f"pipelines.{words[0]}", *words[1:])
    assert done.code == code
    assert part in done.err
    assert "Traceback" not in done.err
    assert "training" not in done.out + done.err
    assert snapshot(settings_only) == before


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"quant: [", "no valid YAML: line 1: "),
        (b"# caf\xe9\n", "no valid YAML: line 1: not UTF-8 text"),
        (b"seed: 0\nseed: 1\n", "no valid YAML: line 2: the key 'seed' stands here twice"),
        (b"[" * 50_000, "no valid YAML: line 1: nested more than 50 levels deep"),
        (BOMB.encode(), "no valid YAML: line 6: more than 20000 values"),
        (b"study: 2024-01-01\n", "no valid YAML: line 1: '2024-01-01' is a date"),
        (b"a: 1\n---\nb: 1\n", "no valid YAML: line 2: a second document"),
        (b"", "empty"),
    ],
)
def test_files_that_are_no_settings(content, said, settings_only, command, one_message):
    params = settings_only / "params.yaml"
    params.write_bytes(content)
    message = one_message(command(settings_only, "pipelines.check"))
    assert message.startswith(f"params.yaml: {said}")


def test_no_file_with_settings(settings_only, command, one_message):
    (settings_only / "params.yaml").unlink()
    message = one_message(command(settings_only, "pipelines.check"))
    assert message == "params.yaml: no such file; run from the root of the repository"


def test_output_folder_that_cannot_be_made(settings_only, command, one_message):
    """Whatever the system refuses is one line too."""
    (settings_only / "data").write_text("a file where a folder should be")
    message = one_message(command(settings_only, "pipelines.check"))
    assert message.startswith("data")
    assert "Not a directory" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("grid:\n  seeds: [010]\n", "grid.seeds.0: Hydra reads 8, DVC 10"),
        ("recipe:\n  lr: 1_0:30\n", "recipe.lr: Hydra reads 630, DVC '1_0:30'"),
        ("fidelity:\n  cooldown: yes\n", "fidelity.cooldown: Hydra reads True, DVC 'yes'"),
        ("seed: 1\nseed: 2\n", "no valid YAML: line 3: the key 'seed' stands here twice"),
        ("seed: [\n", "no valid YAML: line 3: "),
    ],
)
def test_a_file_of_conf_that_is_read_as_two_things(
    text, said, settings_only, command, snapshot, one_message
):
    """Hydra's YAML is 1.1, DVC's is 1.2."""
    path = settings_only / "conf/preset/mine.yaml"
    path.write_text("# @package _global_\n" + text)
    before = snapshot(settings_only)
    message = one_message(command(settings_only, "pipelines.params", "preset=mine"))
    assert message.startswith(f"conf/preset/mine.yaml: {said}")
    assert snapshot(settings_only) == before


def test_numbers_are_those_that_dvc_reads(settings_only, command):
    """What PyYAML takes for a text, or for another number, runs and is recorded as one."""
    params = settings_only / "params.yaml"
    text = params.read_text()
    assert "  lr: 0.006" in text
    params.write_text(text.replace("\nseed: 0\n", "\nseed: 010\n").replace("lr: 0.006", "lr: 6e-3"))
    study = load_study(params)
    assert (study.seed, study.recipe.lr) == (10, 0.006)
    assert study.experiment().name == "ofq-w2a2-s10"


@pytest.mark.parametrize("text", ["", "nonsense", "{}", '["seed=1"]', "[[1]]", "[" * 50_000])
def test_what_check_cannot_read(text, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(SettingsError, match="standard input: expected a JSON list of lists of"):
        main(["--check"])


def test_composing_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="no such file; run from the root of the repository"):
        main(["seed=1"])


def test_help(settings_only, command, snapshot):
    before = snapshot(settings_only)
    for name in ("params", "check"):
        done = command(settings_only, f"pipelines.{name}", "--help")
        assert (done.code, done.err) == (0, "")
        assert f"python -m pipelines.{name}" in done.out
    assert snapshot(settings_only) == before
