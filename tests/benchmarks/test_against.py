"""The comparison with another commit: what fails it, what does not, and what is compared."""

import shutil
import subprocess

import pytest

from benchmarks import against
from benchmarks.against import compare, dearer, main, slower
from benchmarks.commits import checkout, copy_of_working_tree, default_base
from benchmarks.side import CONFIGURATIONS


def rounds(ratios):
    return [({"step": ratio * 0.5}, {"step": 0.5}) for ratio in ratios]


@pytest.mark.parametrize(
    ("ratios", "fails"),
    [
        ([1.0, 1.0, 1.0, 1.0], False),
        ([1.3, 1.3, 1.3, 1.3], True),
        # The median is above, the lower quartile is not: noise.
        ([1.0, 1.1, 1.4, 1.4, 1.4], False),
        # One slow round says nothing.
        ([1.0, 1.0, 1.0, 9.0], False),
        ([0.5, 1.3, 1.3, 1.3, 1.3], True),
    ],
)
def test_only_what_is_slow_throughout_fails(ratios, fails):
    lines, found = slower(rounds(ratios), 1.25)
    assert len(lines) == 1
    assert bool(found) == fails


def test_every_count_above_the_base_is_named():
    base = {"step": {"forward": 10, "saved_bytes": 400}}
    assert dearer(base, base) == []
    assert dearer({"step": {"forward": 9, "saved_bytes": 400}}, base) == []
    (line,) = dearer({"step": {"forward": 9, "saved_bytes": 404}}, base)
    assert line == "step: saved_bytes 404, in the base 400"


def git(folder, *words):
    subprocess.run(
        ["git", "-c", "user.name=T", "-c", "user.email=t@example.invalid", *words],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(tmp_path):
    """A repository on its main branch with one commit."""
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    return tmp_path


def commit(folder, name):
    git(folder, "commit", "-q", "--allow-empty", "-m", name)
    words = ["git", "rev-parse", "HEAD"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True).stdout.strip()


def test_the_first_commit_has_no_base(repository):
    assert default_base(repository) is None


def test_on_the_main_branch_the_base_is_the_commit_before(repository):
    second = commit(repository, "two")
    commit(repository, "three")
    assert default_base(repository) == second


def test_on_a_branch_the_base_is_where_it_left(repository):
    second = commit(repository, "two")
    git(repository, "checkout", "-q", "-b", "work")
    commit(repository, "three")
    commit(repository, "four")
    git(repository, "checkout", "-q", "main")
    commit(repository, "elsewhere")
    git(repository, "checkout", "-q", "work")
    assert default_base(repository) == second


def test_a_shallow_clone_compares_nothing(repository, tmp_path_factory, monkeypatch, capsys):
    commit(repository, "two")
    clone = tmp_path_factory.mktemp("shallow") / "clone"
    git(repository, "clone", "-q", "--depth", "1", f"file://{repository}", str(clone))
    monkeypatch.setattr(against, "default_base", lambda: default_base(clone))
    assert main([]) == 0
    assert "nothing compared" in capsys.readouterr().out


def test_a_checkout_is_removed(repository):
    (repository / "file").write_text("then")
    git(repository, "add", "file")
    first = commit(repository, "with a file")
    (repository / "file").write_text("now")
    with checkout(first, repository) as tree:
        assert (tree / "file").read_text() == "then"
    assert not tree.exists()
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=repository, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The working tree's own sources, as if they were another commit's."""
    folder = tmp_path_factory.mktemp("base")
    copy_of_working_tree(folder)
    return folder


def test_a_tree_against_itself(base, capsys):
    """End to end; counts are equal, and a bound that nothing can meet fails it."""
    assert compare(base, rounds=1, bound=1e-6) == 1
    measured, _, failed = capsys.readouterr().out.partition("FAILED")
    for each in CONFIGURATIONS:
        assert f"{each.name}: " in measured
        assert f"{each.name}: " in failed
    assert "in the base" not in failed


def test_a_base_that_cannot_be_driven_is_not_compared(base, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(base / "ofq_core", old / "ofq_core")
    (old / "ofq_core/training/__init__.py").write_text("")
    assert compare(old, rounds=1, bound=1.25) == 0
    assert "nothing compared" in capsys.readouterr().out
