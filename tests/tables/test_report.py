"""The page with everything: what is in it, and that nothing in it can do harm."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tables.errors import TableError
from tables.figures.model import Figure
from tables.report import fragment, markdown_html, write_report
from tables.runs import Study, read_study
from tests.tables.conftest import SyntheticStudy

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="70" height="30"></svg>'
AGREEMENT = [
    ("DeiT-S, OFQ, W2A2", "75.60 ± 0.20", "75.72 (primary)", "within"),
    ("DeiT-S, OFQ, W3A3", "78.10 ± 0.20", "79.57 (primary)", "outside"),
    ("micro, OFQ, W2A2", "91.02 ± 0.56", "not found", "unpublished"),
    ("Swin-T, OFQ, W4A4", "—", "81.88 (primary)", "not run"),
]


class Outline(HTMLParser):
    """Headings in order, ids, links, cells and what they lack."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.unscoped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        if tag == "img":
            self.images.append(found)
        if tag == "th" and "scope" not in found:
            self.unscoped += 1


@pytest.fixture
def rendered_study(study: SyntheticStudy) -> Study:
    study.run("lsq", 2, 0)
    study.run("ofq", 2, 1, change=lambda settings, metrics, env: env["git"].update(dirty=True))
    study.run("ofq", 4, 1, change=lambda settings, *_: settings["recipe"].update(lr=0.5))
    return read_study(study.folder)


@pytest.fixture
def page(rendered_study: Study, tmp_path: Path) -> str:
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    svg = out / "figures" / "curves.svg"
    svg.write_text(SVG, encoding="utf-8")
    table = out / "ablation.md"
    table.write_text("# Title\n\n| a | b |\n| - | -: |\n| x | 1 |\n", encoding="utf-8")
    path = write_report(
        out,
        rendered_study,
        [("Component ablation", table, [table, out / "ablation.tex"])],
        [
            Figure("curves", "Learning curves", "Made up.", svg, svg.with_suffix(".png"), None),
            Figure("flips", "Flips", "", None, None, None, "no run has <flips>"),
        ],
        AGREEMENT,
    )
    assert path == out / "index.html"
    return path.read_text(encoding="utf-8")


def test_everything_is_on_the_page(page: str) -> None:
    for words in ("synthetic", "Component ablation", "Learning curves", "Made up.", "75.60 ± 0.20"):
        assert words in page
    assert "no run has &lt;flips&gt;" in page
    assert "abcdef0123 (with local changes)" in page
    assert "0.001, 0.5" in page
    assert 'href="ablation.tex">LaTeX<' in page
    assert 'href="figures/curves.png">PNG<' in page
    assert page.count("data:image/svg+xml;base64,") == 1


def test_the_page_is_well_formed_for_readers_of_all_kinds(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert all(image["alt"] for image in outline.images)
    assert outline.unscoped == 0


def test_the_page_loads_nothing(page: str) -> None:
    assert "<script" not in page
    for target in re.findall(r'(?:src|href|url)[=(]"?([^")>\s]+)', page):
        assert not target.startswith(("http:", "https:", "//")), target


def test_cells_are_counted_by_status(page: str) -> None:
    counters = re.findall(r"<dt>([^<]+)</dt><dd>(\d+)</dd>", page)
    found = {words: int(n) for words, n in counters}
    assert found["cells agree with the paper"] == 1
    assert found["cells not run"] == 1
    assert found["runs"] == 3
    assert found["figures, 1 skipped"] == 1
    assert "Outside (1)" in page


def test_a_page_without_tables_figures_or_cells(rendered_study: Study, tmp_path: Path) -> None:
    content = write_report(tmp_path, rendered_study, [], [], []).read_text(encoding="utf-8")
    assert "No table was rendered." in content
    assert "No figure was drawn." in content
    assert "No cell was compared with the paper." in content


def test_an_unknown_status_is_refused(rendered_study: Study, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="status 'nearly'"):
        write_report(tmp_path, rendered_study, [], [], [("cell", "1", "2", "nearly")])


def test_a_missing_table_file_is_named(rendered_study: Study, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"none\.md"):
        write_report(tmp_path, rendered_study, [("x", tmp_path / "none.md", [])], [], [])


def test_markdown_tables() -> None:
    html = markdown_html("| Method | Top-1 |\n| --- | ---: |\n| a \\| b \\*c | **1** & 2 |")
    assert '<th scope="col" class="number">Top-1</th>' in html
    assert '<th scope="row">a | b *c</th>' in html
    assert '<td class="number"><strong>1</strong> &amp; 2</td>' in html
    assert 'class="scroll"' in html


def test_markdown_headings_notes_and_paragraphs() -> None:
    html = markdown_html(
        "<!-- mark -->\n# Title\n\nOne\nline with `code`.\n\n**Part**\n\n## Two\n\n"
        "**Notes**\n\n- first\n  goes on\n- second"
    )
    assert "Title" not in html
    assert "mark" not in html
    assert "<p>One line with <code>code</code>.</p>" in html
    assert "<h4>Part</h4>" in html
    assert "<h4>Two</h4>" in html
    assert (
        "<details><summary>Notes</summary><ul><li>first goes on</li><li>second</li></ul></details>"
        in html
    )


@pytest.mark.parametrize(
    ("words", "html"),
    [
        ("[runs](rows/ofq.md)", '<a href="rows/ofq.md">runs</a>'),
        ("[web](https://example.org/a?b&c)", '<a href="https://example.org/a?b&amp;c">web</a>'),
        ("[x](javascript:alert(1))", "x)"),
        ("[x](//example.org)", "x"),
        ("[x](data:text/html,1)", "x"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ('[a](b"onclick=x)', '<a href="b&quot;onclick=x">a</a>'),
    ],
)
def test_markdown_is_safe(words: str, html: str) -> None:
    assert markdown_html(words) == f"<p>{html}</p>"


def test_fragments_by_suffix(tmp_path: Path) -> None:
    plain = tmp_path / "a.csv"
    plain.write_text('method,top1\nlsq,"<b>1</b>"\n', encoding="utf-8")
    assert "<td>&lt;b&gt;1&lt;/b&gt;</td>" in fragment(plain)
    part = tmp_path / "a.html"
    part.write_text("<p>as it is</p>", encoding="utf-8")
    assert fragment(part) == "<p>as it is</p>"
    part.write_text("<!DOCTYPE html><html></html>", encoding="utf-8")
    with pytest.raises(TableError, match="whole page"):
        fragment(part)
