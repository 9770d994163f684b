"""The HTML page: self-contained, accessible, and every cell linked to its runs."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from tables.render import render
from tables.write import RenderedPaths

if TYPE_CHECKING:
    from tests.tables.conftest import SyntheticStudy

Attributes = dict[str, str | None]


class Page(HTMLParser):
    """Every tag with its attributes, in order, and all text outside the style sheet."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, Attributes]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(words)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data

    def all(self, tag: str) -> list[Attributes]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(rendered: RenderedPaths) -> Page:
    return Page(rendered.html.read_text(encoding="utf-8"))


def test_elements_are_closed(page: Page) -> None:
    assert page.open == []


def test_nothing_is_loaded(page: Page, rendered: RenderedPaths) -> None:
    words = rendered.html.read_text(encoding="utf-8")
    assert "http://" not in words
    assert "https://" not in words
    assert "url(" not in words
    assert "@import" not in words
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert [str(image["src"])[:26] for image in page.all("img")] == ["data:image/svg+xml;base64,"]


def test_every_cell_links_its_runs_and_the_links_resolve(
    page: Page, rendered: RenderedPaths
) -> None:
    links = [unquote(str(link["href"])) for link in page.all("a")]
    assert [link for link in links if not (rendered.html.parent / link).is_file()] == []
    results = rendered.html.parents[1] / "results"
    folders = {path.parent.name for path in results.glob("*/*/metrics.json")}
    assert {link.split("/")[-2] for link in links if link.endswith("metrics.json")} == folders
    # Five files of each of the 39 runs; four quantized rows of three cells, one full-precision.
    assert len(links) == 5 * 39
    assert len(page.all("details")) == 4 * 3 + 1


def test_a_folder_name_with_a_space_is_quoted(study: SyntheticStudy) -> None:
    study.run("lsq", 2, 0)
    moved = study.folder.rename(study.folder.with_name("two words"))
    page = Page(render(moved, moved.parent / "out").html.read_text(encoding="utf-8"))
    assert "../two%20words/lsq-w2a2-s0/metrics.json" in [link["href"] for link in page.all("a")]


def test_the_table_is_accessible(page: Page) -> None:
    assert len(page.all("caption")) == 1
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("img")[0]["alt"]
    scopes = [heading.get("scope") for heading in page.all("th")]
    assert scopes == ["col", *["colgroup"] * 2, *["col"] * 6, *["row"] * 5]
    # Cards on a phone are no longer displayed as a table; the roles keep its meaning.
    assert {cell.get("role") for cell in page.all("td")} == {"cell"}


def test_each_row_fills_the_columns(page: Page) -> None:
    widths: list[int] = []
    for tag, attributes in page.tags[[tag for tag, _ in page.tags].index("tbody") :]:
        if tag == "tr":
            widths.append(0)
        if tag in {"th", "td"}:
            widths[-1] += int(attributes.get("colspan") or 1)
    assert widths == [7] * 5


def test_text_is_escaped(study: SyntheticStudy, tmp_path_factory: pytest.TempPathFactory) -> None:
    study.run("lsq", 2, 0, change=lambda settings, *_: settings["model"].update(name="<b>&micro"))
    paths = render(study.folder, tmp_path_factory.mktemp("out"))
    words = paths.html.read_text(encoding="utf-8")
    assert "<b>" not in words
    assert "&lt;b&gt;&amp;micro" in words


def test_the_numbers_are_there(page: Page) -> None:
    words = " ".join(page.words.split())
    assert "97.75 ± 0.25" in words
    assert "LSQ +6.3 secondary" in words
    assert "75.72 primary" in words
    assert "seed 2: 98.00 %" in words
