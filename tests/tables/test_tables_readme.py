"""README.md shows the committed reference and nothing else."""

from pathlib import Path

import pytest

from tables.errors import TableError
from tables.readme import BEGIN, END, block, with_block

ROOT = Path(__file__).parents[2]


def test_readme_shows_the_reference():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = block(ROOT / "tables/reference/digits_full/rendered").replace(f"{ROOT.as_posix()}/", "")
    assert with_block(readme, shown) == readme, "run python -m tables.readme"
    for link in ("ablation.md", "ablation.svg"):
        assert (ROOT / "tables/reference/digits_full/rendered" / link).is_file()
        assert f"(tables/reference/digits_full/rendered/{link})" in shown


def test_only_the_block_is_replaced():
    assert with_block(f"a\n{BEGIN}old\n{END}b\n", "new\n") == f"a\n{BEGIN}new\n{END}b\n"


def test_missing_markers_and_missing_reference(tmp_path):
    with pytest.raises(TableError, match="markers"):
        with_block("no markers", "new")
    with pytest.raises(TableError, match="no rendered reference"):
        block(tmp_path)
