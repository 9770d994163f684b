"""docs/methods.md says what the registry and the headers say."""

import pytest

from ofq_core.settings.methods import WEIGHT_METHODS, Option, WeightMethod
from tests.methods import render

ROWS = {
    line.split(" | ")[0].strip("| `"): line.split(" | ")
    for line in render.page().splitlines()
    if line.startswith("| `")
}


def test_the_page_is_the_rendering():
    """`python -m tests.methods.render` gives the committed page."""
    assert render.PAGE.read_text() == render.page()


def test_the_tables_labels_are_the_registrys():
    """`python -m tests.methods.render` gives the committed tables/methods.json."""
    assert render.LABELS.read_text() == render.labels()


def test_every_file_of_a_method_is_in_the_registry():
    files = set((render.ROOT / "ofq_core/methods").glob("*.py"))
    files -= {render.ROOT / "ofq_core/methods/__init__.py"}
    assert {render.source(method) for method in WEIGHT_METHODS.values()} == files


@pytest.mark.parametrize("name", list(WEIGHT_METHODS))
def test_every_header_has_what_the_page_needs(name):
    method = WEIGHT_METHODS[name]
    head = render.header(render.source(method))
    assert head.title.endswith("."), "one sentence"
    assert head.formulas
    # What is trained is published; what is not is common practice.
    assert bool(head.citation) == method.trains
    if method.trains:
        assert head.deviations.endswith(".")
    assert not [text for text in (head.title, *head.notes) if "Deviation" in text]


@pytest.mark.parametrize("name", list(WEIGHT_METHODS))
def test_a_row_has_all_columns(name):
    row, method = ROWS[name], WEIGHT_METHODS[name]
    assert len(row) == 9
    assert row[1].startswith(method.label)
    for option in method.options:
        assert f"`{option}`" in row[5]
    assert (row[7] == "yes") == (not method.no_qkr)
    assert (row[8].strip(" |") == "yes") == (not method.no_cga)


def test_a_header_is_taken_apart(tmp_path):
    file = tmp_path / "method.py"
    file.write_text(
        '"""Name: does things (A et al.,\nB 2020) to weights (C 1999; not\nthis).\n\n'
        "    q = |w|,  s = `1`;  t = 2\n    p = a\n        + b\n        dp/da = 1\n    (c), d\n\n"
        "A note, Deviation: one\nof them.\n\nAnother (2021).\n"
        '"""\n'
    )
    assert render.header(file) == (
        "Name: does things (A et al., B 2020) to weights (C 1999; not this).",
        "A et al., B 2020; C 1999; not this",
        ("q = |w|, s = 1; t = 2", "p = a + b; dp/da = 1 (c), d"),
        "one of them.",
        ("A note,", "Another (2021)."),
    )


def test_cells(monkeypatch):
    method = WeightMethod(
        "Label",
        "package.module:Class",
        bits=(2, 4),
        trains=False,
        no_qkr="of a | b",
        options={"x": Option(1e-4, 0.0, 0.999999, "a number")},
    )
    head = render.Header("Title.", "", ("q = |w|", "p = 1"), "", ())
    row = render._row("name", method, head)
    assert row[1:3] == ("Label, not trained", "none: common practice")
    assert row[3:6] == (
        "`q = |w|; p = 1`",
        "none",
        "`x`: 0.0001, [0, 0.999999], a number",
    )
    assert row[6:] == ("2, 4", "no: of a | b", "yes")
    assert "| `q = \\|w\\|; p = 1` |" in render._table(("h",) * 9, [row])
