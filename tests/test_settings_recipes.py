"""The recipe of a bit width, and the names of the two fidelities."""

import copy

import pytest
from pydantic import TypeAdapter

from ofq_core.errors import SettingsError
from ofq_core.explain import validated
from ofq_core.settings import (
    BUNDLES,
    DataSettings,
    DigitsSettings,
    FidelitySettings,
    ImageSettings,
    RecipeChoice,
    RecipeSettings,
    unknown_key,
)

COMMON = {"epochs": 10, "cga_epochs": 2}
TWO = {"batch_size": 32, "lr": 1e-3, "weight_decay": 0.1}
FOUR = {"batch_size": 64, "lr": 5e-4, "weight_decay": 0.0, "mixup": None}


def choice(common=None, **by_bits):
    raw = {
        **COMMON,
        **(common or {}),
        "by_bits": {key[1:]: value for key, value in by_bits.items()},
    }
    return validated(RecipeChoice, copy.deepcopy(raw), "params.yaml", prefix="recipe")


def message_of(common=None, **by_bits):
    with pytest.raises(SettingsError) as error:
        choice(common, **by_bits)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_each_bit_width_has_its_recipe():
    recipes = choice(_2=TWO, _4=FOUR)
    assert recipes.resolve(2, "run") == RecipeSettings(**COMMON, **TWO)
    four = recipes.resolve(4, "run")
    assert (four.batch_size, four.lr, four.weight_decay, four.mixup) == (64, 5e-4, 0.0, 0.0)


def test_a_value_that_is_set_counts_for_every_bit_width():
    """Also a value that is zero or false; null leaves it to the bit width."""
    recipes = choice({"lr": 2e-3, "weight_decay": 0.0}, _2=TWO, _4=FOUR)
    assert [recipes.resolve(bits, "run").lr for bits in (2, 4)] == [2e-3, 2e-3]
    assert recipes.resolve(2, "run").weight_decay == 0.0
    unset = choice({"lr": None}, _2=TWO, _4=FOUR)
    assert [unset.resolve(bits, "run").lr for bits in (2, 4)] == [1e-3, 5e-4]


def test_one_recipe_for_all():
    recipes = choice(TWO)
    assert all(recipes.resolve(bits, "run").lr == 1e-3 for bits in (2, 3, 8, 32))


def test_keys_may_be_numbers_or_text():
    """YAML reads numbers, Hydra's overrides write text."""
    raw = {**COMMON, "by_bits": {2: TWO, "4": FOUR}}
    assert set(validated(RecipeChoice, raw, "params.yaml").by_bits) == {2, 4}


@pytest.mark.parametrize("bits", [3, 8, 32])
def test_more_bits_than_the_recipe_knows(bits):
    with pytest.raises(SettingsError) as error:
        choice(_2=TWO, _4=FOUR).resolve(bits, "grid cell ofq")
    assert str(error.value) == (
        f"grid cell ofq: quant.wbits = {bits}: recipe.by_bits has a recipe for 2, 4 bits only; "
        "take one of these, or set recipe.batch_size, recipe.lr, recipe.weight_decay"
    )


def test_other_bits_with_every_value_given():
    """All that differs between bit widths must be said: a default is nobody's recipe."""
    recipes = choice({"batch_size": 8, "lr": 1e-4}, _2=TWO, _4=FOUR)
    with pytest.raises(SettingsError, match=r"or set recipe\.weight_decay$"):
        recipes.resolve(3, "run")
    recipes = choice({"batch_size": 8, "lr": 1e-4, "weight_decay": 0.3}, _2=TWO, _4=FOUR)
    assert recipes.resolve(3, "run").weight_decay == 0.3


def test_half_a_recipe():
    """Refused for who runs it, at other bit widths it is in nobody's way."""
    recipes = choice(_2=TWO, _4={"lr": 1e-3})
    assert recipes.resolve(2, "run").lr == 1e-3
    with pytest.raises(SettingsError, match=r"run: recipe\.by_bits\.4 lacks batch_size, weight_de"):
        recipes.resolve(4, "run")
    # What null means something for may be set at one bit width alone.
    assert choice(_2=TWO, _4={**FOUR, "mix_group": 4}).resolve(2, "run").mix_group is None


def test_epochs_of_cooldown_are_asked_for_with_its_switch():
    recipes = choice(_2={**TWO, "cooldown_epochs": 3}, _4=FOUR)
    assert recipes.resolve(2, "run").cooldown_epochs == 3
    assert recipes.resolve(4, "run", cooldown=False).cooldown_epochs == 0
    with pytest.raises(SettingsError, match=r"by_bits\.4 lacks cooldown_epochs"):
        recipes.resolve(4, "run", cooldown=True)


def test_contradictions_name_the_run():
    recipes = choice({"min_lr": 7e-4}, _2=TWO, _4=FOUR)
    assert recipes.resolve(2, "run").min_lr == 7e-4
    with pytest.raises(SettingsError) as error:
        recipes.resolve(4, "cell of 4 bits")
    assert str(error.value) == (
        "cell of 4 bits: recipe: min_lr = 0.0007 must not exceed lr = 0.0005"
    )
    assert message_of(TWO | {"min_lr": 1.0}) == (
        "params.yaml: recipe: min_lr = 1 must not exceed lr = 0.001"
    )


@pytest.mark.parametrize(
    ("by_bits", "parts"),
    [
        ({"_2": {**TWO, "lr": 0}}, ["recipe.by_bits.2.lr = 0", "more than 0"]),
        ({"_2": {**TWO, "l": 1}}, ["recipe.by_bits.2.l: unknown key", "did you mean 'lr'?"]),
        ({"_9": TWO}, ["recipe.by_bits.9 = 9: expected 2, 3, 4, 5, 6, 7 or 8"]),
        ({"_two": TWO}, ["recipe.by_bits.two = 'two': expected 2, 3"]),
        ({"_2": {**TWO, "by_bits": {}}}, ["recipe.by_bits.2.by_bits: unknown key"]),
    ],
)
def test_mistakes_in_by_bits(by_bits, parts):
    message = message_of(**by_bits)
    assert all(part in message for part in parts), message


def test_by_bits_must_be_a_mapping():
    with pytest.raises(SettingsError, match=r"recipe\.by_bits = \[2\]: expected keys with values"):
        validated(RecipeChoice, {**COMMON, **TWO, "by_bits": [2]}, "params.yaml", prefix="recipe")


@pytest.mark.parametrize(
    ("mix", "batch_size", "fits"),
    [
        ({"mixup": 0.8}, 31, False),
        ({"cutmix": 1.0}, 32, True),
        ({"mixup": 0.8, "mix_group": 16}, 32, True),
        ({"mixup": 0.8, "mix_group": 16}, 40, False),
        ({"mix_group": 16}, 31, True),  # nothing is mixed
    ],
)
def test_images_are_mixed_in_pairs(mix, batch_size, fits):
    raw = {**COMMON, "lr": 1e-3, "batch_size": batch_size, **mix}
    if fits:
        assert validated(RecipeSettings, raw, "recipe").mixes == ("mixup" in mix or "cutmix" in mix)
        return
    with pytest.raises(SettingsError, match=f"batch_size = {batch_size} must be a multiple of mix"):
        validated(RecipeSettings, raw, "recipe")


# Which data


def test_the_kind_of_data_follows_from_its_keys():
    read = TypeAdapter(DataSettings).validate_python
    assert isinstance(read({"name": "digits"}), DigitsSettings)
    assert isinstance(read({"name": "anything", "source": "hfds/x"}), ImageSettings)
    for one in (DigitsSettings(name="digits"), ImageSettings(name="a", source="folder")):
        assert read(one) is one, "settings that are read already"


# What Hydra cannot override


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("recipe.by_bits.5.lr", "conf/ has no such entry to change; +recipe.by_bits.5.lr=... adds"),
        ("recipe.by_bits.5.l", "unknown key, did you mean 'lr'?"),
        ("methods.new.qkr", "conf/ has no such entry to change"),
        ("methods.ofq.qrk", "unknown key, did you mean 'qkr'?"),
        ("data.hflip", "conf/ has no such entry to change"),
        ("data.hflipp", "unknown key, did you mean 'hflip'?"),
        ("fidelity.qkbias", "unknown key, did you mean 'qk_bias'?"),
        ("quants.wbits", "unknown key, did you mean 'quant'?"),
    ],
)
def test_keys_that_cannot_be_dialled(key, message):
    assert unknown_key(key).startswith(f"{key}: {message}")


# Fidelity


def test_the_two_fidelities():
    assert BUNDLES["described"] == FidelitySettings()
    assert {name: bundle.name for name, bundle in BUNDLES.items()} == {
        "described": "described",
        "released": "released",
    }


@pytest.mark.parametrize("switch", list(FidelitySettings.model_fields))
def test_every_switch_differs_between_the_two_and_makes_a_mixture(switch):
    described, released = (BUNDLES[name].model_dump() for name in ("described", "released"))
    assert described[switch] != released[switch]
    assert FidelitySettings(**(described | {switch: released[switch]})).name == "mixed"
    assert FidelitySettings(**(released | {switch: described[switch]})).name == "mixed"
