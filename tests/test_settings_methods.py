"""Methods by their settings: options, combinations without a meaning, rivals and variants."""

import copy
from dataclasses import replace

import pytest

from ofq_core.errors import SettingsError
from ofq_core.explain import validated
from ofq_core.settings import BUNDLES, FidelitySettings, QuantSettings, RunSettings
from ofq_core.settings.methods import WEIGHT_METHODS
from tests.test_settings import VALID, changed, message_of, read

NO_TOGGLES = {"qkr": False, "cga": False}


def quant(weight, **more):
    raw = {"weight": weight, "wbits": 2, "abits": 2, **NO_TOGGLES, **more}
    return validated(QuantSettings, raw, "params.yaml", prefix="quant")


def refusal(weight, **more):
    with pytest.raises(SettingsError) as error:
        quant(weight, **more)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("params.yaml: quant: ")
    return message.removeprefix("params.yaml: quant: ")


def with_rows(rows, **grid):
    """Valid settings with further rows of methods and further parts of the grid."""
    raw = copy.deepcopy(VALID)
    raw["methods"].update(rows)
    raw["grid"].update(grid)
    return raw


# Options


@pytest.mark.parametrize("weight", WEIGHT_METHODS)
def test_defaults_are_filled_in(weight):
    known = WEIGHT_METHODS[weight].options
    expected = {name: option.default for name, option in known.items()}
    assert quant(weight).options == expected
    assert quant(weight, options=dict.fromkeys(known)).options == expected
    # conf/ has every option of every method, null: those of other methods are no mistake.
    everything = {name: None for method in WEIGHT_METHODS.values() for name in method.options}
    assert quant(weight, options=everything).options == expected


def test_options_that_are_set():
    assert quant("freezing", options={"last_threshold": 0.011}).options == {
        "first_threshold": 0.1,
        "last_threshold": 0.011,
    }
    assert quant("pact", options={"alpha_decay": 0}).options == {"alpha_decay": 0.0}


@pytest.mark.parametrize(("bits", "last"), [(2, 0.01), (3, 0.011), (4, 0.01), (8, 0.01)])
def test_a_default_may_depend_on_the_bit_width(bits, last):
    """Dialled or in a row of the grid, which has several; what is set holds for all of them."""
    assert quant("freezing", wbits=bits).options["last_threshold"] == last
    assert quant("freezing", wbits=bits, options={"first_threshold": 0.2}).options == {
        "first_threshold": 0.2,
        "last_threshold": last,
    }
    row = {"weight": "freezing", **NO_TOGGLES}
    assert read(with_rows({"freezing": row})).cell("freezing", bits, 0).quant == quant(
        "freezing", wbits=bits, abits=bits
    )
    row["options"] = {"last_threshold": 0.02}
    found = read(with_rows({"freezing": row})).cell("freezing", bits, 0).quant.options
    assert found == {"first_threshold": 0.1, "last_threshold": 0.02}


def test_defaults_and_options_reach_the_hash_of_a_run():
    """A default that changes makes another run; to write it out does not."""
    raw = changed("quant", {"weight": "obr", "wbits": 2, "abits": 2, **NO_TOGGLES})
    plain = read(raw).experiment()
    assert plain.quant.options == {"strength": 0.01}
    raw["quant"]["options"] = {"strength": 0.01}
    assert read(raw).experiment().sha256() == plain.sha256()
    raw["quant"]["options"] = {"strength": 0.02}
    assert read(raw).experiment().sha256() != plain.sha256()
    again = validated(RunSettings, plain.model_dump(mode="json"), "settings.yaml")
    assert again.quant.options == plain.quant.options


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (
            "obr",
            {"strenght": 1},
            "options.strenght: weight = 'obr' has no such option, did you mean 'strength'?; known "
            "are strength",
        ),
        (
            "freezing",
            {"x": 1},
            "options.x: weight = 'freezing' has no such option; known are first_threshold, "
            "last_threshold",
        ),
        ("lsq", {"decay": 0.9}, "options.decay: weight = 'lsq' has no such option; it has none"),
        ("qema", {"decay": 1.0}, "options.decay = 1: expected a number in [0, 0.999999]"),
        ("stableqat", {"amplitude": 0.23}, "options.amplitude = 0.23: expected a number in [0, 0"),
        ("dampening", {"strength": -0.1}, "options.strength = -0.1: expected a number in [0, 100]"),
    ],
)
def test_wrong_options(weight, options, message):
    assert refusal(weight, options=options).startswith(message)


@pytest.mark.parametrize(
    ("weight", "name"), [(w, n) for w, m in WEIGHT_METHODS.items() for n in m.options]
)
def test_both_ends_of_an_option_are_allowed(weight, name):
    option = WEIGHT_METHODS[weight].options[name]
    assert option.low <= option.default <= option.high
    for value in (option.low, option.high):
        assert quant(weight, options={name: value}).options[name] == value
    for value in (option.low - 0.001, option.high + 0.001):
        assert f"options.{name} = {value:g}" in refusal(weight, options={name: value})


@pytest.mark.parametrize("value", ["much", [1.0], float("nan"), float("inf")])
def test_an_option_is_a_number(value):
    raw = {"weight": "obr", "wbits": 2, "abits": 2, **NO_TOGGLES, "options": {"strength": value}}
    with pytest.raises(SettingsError, match=r"^params\.yaml: quant\.options\.strength = "):
        validated(QuantSettings, raw, "params.yaml", prefix="quant")


def test_options_of_a_row_reach_its_cells():
    row = {"weight": "obr", **NO_TOGGLES, "options": {"strength": 0.5}}
    settings = read(with_rows({"obr": row}))
    assert settings.cell("obr", 3, 1).quant.options == {"strength": 0.5}
    message = message_of(with_rows({"obr": {**row, "options": {"strength": 500}}}))
    assert message == (
        "params.yaml: methods.obr: options.strength = 500: expected a number in [0, 100]"
    )


# Combinations without a meaning


@pytest.mark.parametrize("weight", WEIGHT_METHODS)
@pytest.mark.parametrize("part", ["qkr", "cga"])
def test_every_refusal_says_why(weight, part):
    reason = getattr(WEIGHT_METHODS[weight], f"no_{part}")
    if not reason:
        assert getattr(quant(weight, **{part: True}), part)
        return
    expected = f"{part} = true has no meaning with weight = {weight!r}: {reason}"
    assert refusal(weight, **{part: True}) == expected
    name = f"{weight}_{part}"
    row = {"weight": weight, **NO_TOGGLES, part: True}
    assert message_of(with_rows({name: row})) == f"params.yaml: methods.{name}: {expected}"


def test_methods_that_cannot_take_cga():
    without = {name for name, method in WEIGHT_METHODS.items() if method.no_cga}
    assert without == {"freezing", "qema", "rtn", "ptq"}
    untrained = {name for name, method in WEIGHT_METHODS.items() if not method.trains}
    assert untrained == {"rtn", "ptq"}


@pytest.fixture
def ternary(monkeypatch):
    """A method for few bits that cannot take QKR: today's can do both."""
    method = replace(WEIGHT_METHODS["lsq"], bits=(2, 3), no_qkr="it looks at single factors")
    monkeypatch.setitem(WEIGHT_METHODS, "ternary", method)


@pytest.mark.usefixtures("ternary")
def test_qkr_can_be_refused():
    message = refusal("ternary", qkr=True, cga=True)
    assert message == (
        "qkr = true has no meaning with weight = 'ternary': it looks at single factors"
    )
    assert quant("ternary", cga=True).method == "ternary_cga"


@pytest.mark.usefixtures("ternary")
def test_bits_that_a_method_is_not_defined_for():
    for bits in (2, 3, 32):
        assert quant("ternary", wbits=bits).wbits == bits
    message = "wbits = 4 with weight = 'ternary': expected one of 2, 3, or 32"
    assert refusal("ternary", wbits=4) == message
    settings = read(with_rows({"ternary": {"weight": "ternary", **NO_TOGGLES}}))
    assert settings.cell("ternary", 3, 0).quant.wbits == 3
    with pytest.raises(SettingsError) as error:
        settings.cell("ternary", 4, 0)
    assert str(error.value) == f"grid cell ternary-4-0: quant: {message}"


def test_activations_may_have_other_bits():
    assert quant("rtn", wbits=4, abits=8).abits == 8


# Rivals and variants

ROWS = {
    "obr": {"weight": "obr", **NO_TOGGLES},
    "rtn": {"weight": "rtn", **NO_TOGGLES},
    "ofq_released": {"weight": "statsq", "qkr": True, "cga": True, "fidelity": "released"},
    "ofq_br0p003": {"weight": "statsq", "qkr": True, "cga": True, "boundary_range": 0.003},
}
RIVALS = {"methods": ["obr", "rtn"], "bits": [2, 4], "seeds": [0]}
VARIANTS = {"methods": ["ofq_released", "ofq_br0p003"], "bits": [2], "seeds": [0, 7]}


def test_cells_of_rivals_and_variants_are_runs():
    settings = read(with_rows(ROWS, rivals=RIVALS, variants=VARIANTS, full_precision_seeds=[1]))
    names = [run.name for run in settings.runs_of_grid()]
    assert len(names) == len(set(names))
    assert len(names) == 2 * 3 * 3 + 2 * 2 * 1 + 2 * 1 * 2 + 1
    assert names[18:22] == ["obr-w2a2-s0", "obr-w4a4-s0", "rtn-w2a2-s0", "rtn-w4a4-s0"]
    assert names[22:] == [
        "ofq_released-w2a2-s0",
        "ofq_released-w2a2-s7",
        "ofq_br0p003-w2a2-s0",
        "ofq_br0p003-w2a2-s7",
        "fp-w32a32-s1",
    ]
    assert len(settings.grid.cells()) == 18, "the main table is of the main methods alone"


@pytest.mark.parametrize("key", ["rivals", "variants"])
def test_other_cells_may_be_none(key):
    settings = read(with_rows(ROWS, **{key: {}}))
    assert len(settings.runs_of_grid()) == 18
    assert len(read(with_rows(ROWS, **{key: {**RIVALS, "seeds": []}})).runs_of_grid()) == 18


@pytest.mark.parametrize("key", ["rivals", "variants"])
@pytest.mark.parametrize(
    ("cells", "parts"),
    [
        ({"methods": ["obrr"]}, ["grid.{}.methods: unknown method 'obrr', did you mean 'obr'?"]),
        ({"methods": ["obr", "obr"]}, ["grid.{}: methods = ['obr', 'obr'] names a value twice"]),
        (
            {"methods": ["obr", "lsq"]},
            ["grid: {}.methods = ['obr', 'lsq'] names lsq, which the grid has already"],
        ),
        ({"bits": [1]}, ["grid.{}.bits.0 = 1", "2, 3, 4, 5, 6, 7 or 8"]),
        ({"bits": [2.0]}, ["grid.{}.bits = [2.0]", "whole numbers from 2 to 8"]),
        ({"seeds": [3, 3]}, ["grid.{}: seeds = [3, 3] names a value twice"]),
        ({"method": []}, ["grid.{}.method: unknown key, did you mean 'methods'?"]),
    ],
)
def test_mistakes_in_other_cells(key, cells, parts):
    message = message_of(with_rows(ROWS, **{key: {**RIVALS, **cells}}))
    assert "\n" not in message
    for part in parts:
        assert part.format(key) in message


def test_a_method_is_a_rival_or_a_variant():
    both = with_rows(ROWS, rivals=RIVALS, variants={**VARIANTS, "methods": ["rtn", "obr"]})
    assert "variants.methods = ['rtn', 'obr'] names obr, rtn, which the grid has" in message_of(
        both
    )


# Rows with switches or a boundary range of their own


def test_a_row_with_the_released_codes_defects():
    settings = read(with_rows(ROWS))
    run = settings.cell("ofq_released", 2, 0)
    assert run.name == "ofq_released-w2a2-s0"
    assert run.fidelity == BUNDLES["released"]
    assert run.quant == settings.cell("ofq", 2, 0).quant
    assert settings.cell("ofq", 2, 0).fidelity == FidelitySettings()


def test_a_row_as_described_in_a_study_of_the_released_code():
    row = {"weight": "lsq", **NO_TOGGLES, "fidelity": "described"}
    raw = with_rows({"lsq_described": row})
    raw["fidelity"] = BUNDLES["released"].model_dump()
    settings = read(raw)
    assert settings.cell("lsq_described", 2, 0).fidelity.name == "described"
    assert settings.cell("lsq", 2, 0).fidelity.name == "released"


def test_a_row_with_a_boundary_range():
    settings = read(with_rows(ROWS, quant={"boundary_range": 0.01}))
    assert settings.cell("ofq_br0p003", 4, 0).quant.boundary_range == 0.003
    assert settings.cell("ofq", 4, 0).quant.boundary_range == 0.01
    assert settings.experiment().quant.boundary_range == 0.005, "what is dialled is its own"
    assert settings.cell("ofq_br0p003", 4, 0).sha256() != settings.cell("ofq", 4, 0).sha256()


@pytest.mark.parametrize(
    ("toggles", "name"),
    [
        ({"weight": "statsq", "qkr": True, "cga": True, "boundary_range": 0.05}, "ofq_br0p05"),
        ({"weight": "lsq", "qkr": True, "cga": True, "boundary_range": 0.5}, "lsq_qkr_cga_br0p5"),
        ({"weight": "statsq", **NO_TOGGLES, "fidelity": "described"}, "statsq_described"),
        (
            {
                "weight": "statsq",
                "qkr": False,
                "cga": True,
                "fidelity": "released",
                "boundary_range": 0.007,
            },
            "statsq_cga_released_br0p007",
        ),
    ],
)
def test_a_row_is_called_what_it_is(toggles, name):
    assert read(with_rows({name: toggles})).cell(name, 2, 0).method == name
    assert message_of(with_rows({"mine": toggles})) == (
        f"params.yaml: methods.mine: these toggles make the method {name!r}"
    )


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("fidelity", "mixed", "methods.ofq.fidelity = 'mixed': expected 'described' or 'released'"),
        ("boundary_range", 0, "methods.ofq.boundary_range = 0: expected more than 0"),
        ("boundary_range", 0.51, "methods.ofq.boundary_range = 0.51: expected at most 0.5"),
        ("options", {"x": 1}, "methods.ofq: options.x: weight = 'statsq' has no such option"),
        ("wbits", 2, "methods.ofq.wbits: unknown key"),
    ],
)
def test_mistakes_in_a_row(key, value, part):
    raw = copy.deepcopy(VALID)
    raw["methods"]["ofq"][key] = value
    message = message_of(raw)
    assert "\n" not in message
    assert part in message


def test_a_row_that_says_more_than_its_name():
    for key, value in (("fidelity", "released"), ("boundary_range", 0.005), ("qkr", False)):
        raw = changed(f"methods.ofq.{key}", value)
        assert "these toggles make the method" in message_of(raw)
