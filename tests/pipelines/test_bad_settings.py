"""Wrong settings end every command within a second, in one line, before anything is touched."""

import pytest

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
    ("nonsense", ["nonsense"]),
]


@pytest.mark.parametrize(("override", "parts"), OVERRIDES, ids=[o for o, _ in OVERRIDES])
def test_overrides(override, parts, settings_only, command, snapshot, one_message):
    before = snapshot(settings_only)
    message = one_message(command(settings_only, "pipelines.params", override))
    assert message.startswith(f"{override}: "), "says which override"
    for part in parts:
        assert part in message
    assert ".draft" not in message
    assert snapshot(settings_only) == before, "params.yaml is as it was, and no draft is left"


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
    if bits == 5:
        done = command(settings_only, "pipelines.params", preset, "grid.bits=[2,5]")
        assert f"grid cell lsq-5-0: {known}" in one_message(done)
    assert snapshot(settings_only) == before


@pytest.mark.parametrize("stage", ["check", "prepare", "teacher", "qat", "tables"])
def test_every_stage_knows_that_a_recipe_is_missing(
    stage, settings_only, set_params, command, snapshot, one_message
):
    done = command(settings_only, "pipelines.params", "preset=imagenet_deit_tiny")
    assert done.code == 0, done.err
    set_params(settings_only, quant__wbits=6)
    before = snapshot(settings_only)
    message = one_message(command(settings_only, f"pipelines.{stage}"))
    assert message.startswith("params.yaml: experiment ofq: quant.wbits = 6: recipe.by_bits has")
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


def test_files_that_are_no_settings(settings_only, command, one_message):
    params = settings_only / "params.yaml"
    params.write_text("quant: [")
    assert "params.yaml: no valid YAML" in command(settings_only, "pipelines.check").err
    params.unlink()
    message = one_message(command(settings_only, "pipelines.check"))
    assert message == "params.yaml: no such file; run from the root of the repository"


def test_output_folder_that_cannot_be_made(settings_only, command, one_message):
    """Whatever the system refuses is one line too."""
    (settings_only / "data").write_text("a file where a folder should be")
    message = one_message(command(settings_only, "pipelines.check"))
    assert message.startswith("data")
    assert "File exists" in message
