"""Published values: verbatim where found, empty where not, each with its trust level."""

from pathlib import Path

import pytest

from tables.errors import TableError
from tables.published import Published, PublishedNumbers

OFQ = ("statsq", "qkr", "cga")


@pytest.fixture
def numbers() -> PublishedNumbers:
    return PublishedNumbers()


def test_full_precision_is_what_the_authors_print(numbers: PublishedNumbers) -> None:
    value = numbers.full_precision("deit_small")
    assert (value.text, value.value, value.trust) == ("79.9", 79.9, "primary")
    assert "81.2 by a later paper (secondary)" in value.note


@pytest.mark.parametrize(
    ("bits", "text"), [("w2a2", "75.72"), ("w3a3", "79.57"), ("w4a4", "81.10")]
)
def test_ofq_keeps_the_printed_digits(numbers: PublishedNumbers, bits: str, text: str) -> None:
    value = numbers.ablation("deit_small", OFQ, bits)
    assert (value.text, value.trust) == (text, "primary")


def test_lsq_is_derived_and_only_at_two_bits(numbers: PublishedNumbers) -> None:
    value = numbers.ablation("deit_small", ("lsq",), "w2a2")
    assert (value.text, value.value, value.trust) == ("68.00", 68.0, "derived")
    missing = numbers.ablation("deit_small", ("lsq",), "w3a3")
    assert (missing.text, missing.value, missing.trust) == ("not found", None, None)


def test_a_gain_never_becomes_an_absolute_value(numbers: PublishedNumbers) -> None:
    value = numbers.ablation("deit_small", ("statsq",), "w4a4")
    assert (value.text, value.gain_over_lsq, value.trust) == ("LSQ +1.0", 1.0, "secondary")
    assert value.value is None


def test_what_was_not_found_stays_empty(numbers: PublishedNumbers) -> None:
    value = numbers.ablation("deit_small", ("statsq", "qkr"), "w2a2")
    assert (value.text, value.value, value.trust) == ("not found", None, None)
    assert numbers.ablation("deit_small", ("cga",), "w2a2") == Published()
    assert numbers.ablation("no_such_model", OFQ, "w2a2") == Published()
    assert numbers.full_precision("no_such_model") == Published()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{components: [lsq], w2a2: 68.00, trust: hearsay}", "trust 'hearsay' is unknown"),
        ("{components: [lsq], w2a2: about 68, trust: primary}", "'about 68' is not a number"),
    ],
)
def test_a_bad_entry_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(f"ablation_deit_small:\n  - {line}\n", encoding="utf-8")
    with pytest.raises(TableError, match=message):
        PublishedNumbers(path).ablation("deit_small", ("lsq",), "w2a2")
