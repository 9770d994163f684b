"""docs/fidelity.md says what the tests say."""

import pytest

from ofq_core.settings import FidelitySettings
from tests.fidelity import render
from tests.fidelity.switches import SWITCHES
from tests.fidelity.test_switches import CHANGES

ABOUT_THE_PAGE = "test_page.py"


def test_the_page_is_the_rendering():
    """`python -m tests.fidelity.render` gives the committed page."""
    assert render.PAGE.read_text() == render.page()


def test_every_test_makes_a_claim_or_is_about_a_switch():
    for test in render.tests():
        if test.file != ABOUT_THE_PAGE:
            assert test.claim or test.switches, test.where
            assert bool(test.claim) == bool(test.released), test.where
            assert test.proof.endswith((".", "?")), f"{test.where}: no sentence says how"


def test_claims_are_sentences_and_different():
    claims = [test.claim for test in render.tests() if test.claim]
    assert len(set(claims)) == len(claims) > 15
    assert all(claim.endswith(".") for claim in claims)


@pytest.mark.parametrize("switch", list(FidelitySettings.model_fields))
def test_every_switch_has_a_text_and_a_test(switch):
    assert all(text.endswith(".") for text in SWITCHES[switch])
    assert [test for test in render.tests() if switch in test.switches]
    row = next(line for line in render.page().splitlines() if line.startswith(f"| `{switch}` |"))
    assert row.count(" | ") == 5


def test_nothing_is_told_of_a_switch_that_there_is_not():
    known = set(FidelitySettings.model_fields)
    assert set(SWITCHES) == set(CHANGES) == known
    assert {name for test in render.tests() for name in test.switches} <= known


def test_pipes_do_not_break_the_table():
    """LSQ's |u - t| is one cell."""
    assert "| a \\| b |" in render._table(("h",), [("a | b",)])
