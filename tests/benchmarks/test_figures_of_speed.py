"""From times to what is written: ratios, slopes, the page, the figure."""

import copy
import json

import pytest

from benchmarks import interleave
from benchmarks.__main__ import LATEST, PARTS, README, main, update, write
from benchmarks.cell import measure_cell
from benchmarks.growth import slope
from benchmarks.interleave import Ratio, interleaved, paired
from benchmarks.page import Line, render
from benchmarks.pieces import summary
from benchmarks.plot import growth_svg

GROWTH = {
    axis: {
        method: {"points": [[1, 0.1 * k], [2, 0.2 * k], [4, 0.4 * k]], "slope": 1.0}
        for k, method in enumerate(("full_precision", "statsq", "statsq_qkr"), 1)
    }
    for axis in ("tokens", "width", "batch")
}


def ratio(median):
    return Ratio(median, median - 0.2, median - 0.1, median + 0.1, median + 0.2, 7).as_dict()


def test_ratios_are_taken_within_rounds(monkeypatch):
    """A machine that becomes ten times slower changes no ratio."""
    now, speed = [0.0], [1.0]
    monkeypatch.setattr(interleave, "clock", lambda wall: lambda: now[0])

    def work(amount):
        def run():
            now[0] += amount * speed[0]

        return run

    def last(amount):
        def run():
            work(amount)()
            speed[0] *= 10

        return run

    times = interleaved({"a": work(1.0), "b": last(3.0)}, rounds=4, repeats=1)
    found = paired(times, "b", "a")
    assert found.as_dict() == pytest.approx(
        {"median": 3, "low": 3, "quarter": 3, "three_quarters": 3, "high": 3, "n": 4}
    )
    assert times["a"] == pytest.approx([10.0, 100.0, 1000.0, 10000.0])


def test_a_summary_of_rounds():
    found = Ratio.of([4.0, 1.0, 2.0, 3.0, 5.0])
    assert found == Ratio(3.0, 1.0, 2.0, 4.0, 5.0, 5)
    assert Ratio.of([2.0]) == Ratio(2.0, 2.0, 2.0, 2.0, 2.0, 1)
    with pytest.raises(ValueError, match="no rounds"):
        Ratio.of([])


def test_slopes_are_exponents():
    assert slope([(x, 5 * x**1.5) for x in (1, 2, 4, 8)]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="two different values"):
        slope([(2, 1), (2, 3)])


def test_the_committed_page_is_the_rendering_of_the_committed_numbers():
    assert README.read_text() == render(json.loads(LATEST.read_text()))


def test_targets_are_called_met_or_missed():
    met, missed = Line("a", "-", 1.25, ratio(1.25)), Line("b", "-", 1.25, ratio(1.251))
    exact, without = Line("c", "3.0x", 1.0, 0.5), Line("d", "-", 1.3, None, "no GPU at hand")
    assert met.render().endswith("| met |")
    assert "1.150 to 1.350 (1.050 to 1.450), n = 7" in met.render()
    assert missed.render().endswith("| **missed** |")
    assert exact.render() == "| c | 3.0x | <= 1x | 0.500x | exact | met |"
    assert without.render() == "| d | - | <= 1.3x | no GPU at hand | | |"


def test_nothing_measured_is_said():
    page = render({})
    assert page.count("| not measured |") >= 15
    assert "met |" not in page
    assert "missed" not in page


def test_the_figure_has_every_slope_and_the_same_bytes_again():
    svg = growth_svg(GROWTH)
    assert svg.startswith(b"<?xml")
    assert svg == growth_svg(GROWTH)
    other = copy.deepcopy(GROWTH)
    other["batch"]["statsq"]["points"][1][1] *= 2
    assert svg != growth_svg(other)


def test_writing(tmp_path):
    latest = {}
    update(latest, "growth", GROWTH, threads=1)
    update(latest, "cell", {"ratio": ratio(0.4), "commit": "abcdef0"}, threads=1)
    write(latest, tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "latest.json").read_text()) == latest
    assert list(latest) == [part for part in PARTS if part in latest]
    assert "| tokens per image | 1.00 | 1.00 | 1.00 |" in page
    assert "the same at abcdef0 | - | <= 0.5x | 0.400x |" in page
    assert (tmp_path / "growth.svg").read_bytes() == growth_svg(GROWTH)


def test_what_is_missing_here_replaces_no_measurement_from_elsewhere():
    latest = {}
    update(latest, "gpu", {"missing": "no GPU at hand"}, threads=1)
    assert latest["gpu"]["result"] == {"missing": "no GPU at hand"}
    latest["gpu"]["result"] = {"batch": 128}
    update(latest, "gpu", {"missing": "no GPU at hand"}, threads=1)
    assert latest["gpu"]["result"] == {"batch": 128}


def test_a_clone_without_the_old_commit_says_so():
    found = measure_cell(1, before="0" * 40)
    assert list(found) == ["missing"]
    assert "history" in found["missing"]


def test_pieces_are_grouped_by_form():
    def one(group, form, median):
        stats = {"median": median, "iqr": 0.1, "rounds": 5}
        return {"group": group, "params": {"form": form}, "stats": stats}

    found = summary([one("b", "ours", 2.0), one("a", "ours", 1.0), one("b", "plain", 4.0)])
    assert list(found) == ["a", "b"]
    assert found["b"]["plain"]["median"] == 4.0


def test_an_unknown_part_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "nonsense"])
    with pytest.raises(SystemExit):
        main()
    assert "unknown part 'nonsense'" in capsys.readouterr().err
