"""The specification: what is in it, and clear errors for what should not be."""

from pathlib import Path

import pytest

from tables.errors import TableError
from tables.spec import SPECS, load_spec


def test_the_ablation_table() -> None:
    spec = load_spec("ablation")
    always = [row.method for row in spec.rows if not row.optional]
    assert always == ["fp", "lsq", "statsq", "statsq_qkr", "ofq"]
    # Every subset of StatsQ (off: LSQ), QKR and CGA, at three fidelities.
    subsets = ["lsq", "lsq_qkr", "lsq_cga", "lsq_qkr_cga", "statsq", "statsq_qkr", "statsq_cga"]
    quantized = [*subsets, "ofq"]
    assert [row.method for row in spec.rows] == [
        "fp",
        *(f"{name}{suffix}" for suffix in ("", "_released", "_described") for name in quantized),
    ]
    assert spec.bits == (2, 3, 4)
    assert spec.baseline == "lsq"
    assert spec.rows[0].bits == 32


def test_an_unknown_table_lists_the_known_ones() -> None:
    with pytest.raises(TableError, match="table 'ablatoin' is unknown, there are: ablation"):
        load_spec("ablatoin")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", "key 'title' is missing"),
        ("baseline: lsq", "colour: red\nbaseline: lsq", "unknown key colour; .* title, "),
        ("label: LSQ,", "label: LSQ, bold: true,", "rows: unknown key bold; allowed are "),
        (
            "published:\n  model:",
            "published:\n  modle: x\n  model:",
            "published: unknown key modle",
        ),
        ("bits: [2, 3, 4]", "bits: [2, two]", "bits 'two', expected a whole number from 2 to 32"),
        ("bits: [2, 3, 4]", "bits: [1]", "bits 1, expected a whole number from 2 to 32"),
        ("bits: [2, 3, 4]", "bits: 2", "'bits' is 2, expected a list"),
        ("baseline: lsq", "baseline: lqs", "baseline 'lqs' is not among the rows"),
        ("method: ofq", "method: lsq", "two rows have the same method"),
        ("published: [lsq]", "published: 68", "'published' is 68, expected"),
        ("may_differ: [quant, method, seed]", "may_differ: [1]", "holds 1, expected text"),
        ("rows:\n", "rows:\n  - fp\n", "expected keys and values, found 'fp'"),
        ("title: Component", "title: [Component", "no valid YAML"),
    ],
)
def test_a_bad_specification_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    words = (SPECS / "ablation.yaml").read_text(encoding="utf-8")
    assert old in words
    (tmp_path / "broken.yaml").write_text(words.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(TableError, match=message) as caught:
        load_spec("broken", tmp_path)
    assert "\n" not in str(caught.value)
