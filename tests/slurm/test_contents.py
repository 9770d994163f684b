"""Hashes equal DVC's, listings are complete, the store never changes under a job."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.contents import (
    Store,
    hash_of,
    link,
    list_path,
    md5_file,
    overlap,
    place_path,
    within,
)

NAMES = st.text("abcXYZ09._- é", min_size=1, max_size=8).filter(lambda name: name.strip(". "))


@pytest.fixture(scope="module")
def dvc_hash(tmp_path_factory):
    """DVC's own hash of a file or folder."""
    from dvc.repo import Repo
    from dvc_data.hashfile.build import build

    folder = tmp_path_factory.mktemp("repo")
    repo = Repo.init(str(folder), no_scm=True)

    def compute(path):
        _, _, found = build(repo.cache.local, str(path), repo.fs, "md5", dry_run=True)
        return found.hash_info.value

    yield compute
    repo.close()


@given(
    files=st.dictionaries(
        st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=64), max_size=6
    )
)
def test_hashes_are_those_of_dvc(files, dvc_hash, tmp_path_factory):
    root = tmp_path_factory.mktemp("hash")
    (root / "out").mkdir()
    for name, content in files.items():
        path = root / "out" / name
        if any(parent.is_file() for parent in path.parents) or path.is_dir():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    listing = list_path(root, "out")
    for name, md5 in listing.items():
        assert md5 == dvc_hash(root / name)
    if listing:
        assert hash_of(listing, "out") == dvc_hash(root / "out")
    else:
        assert hash_of(listing, "out") is None


def test_parts_of_a_listing():
    listing = {"a/b": "1", "a/c/d": "2", "ab": "3"}
    assert within(listing, "a") == {"a/b": "1", "a/c/d": "2"}
    assert within(listing, "a/c/d") == {"a/c/d": "2"}
    assert hash_of(listing, "ab") == "3"
    assert hash_of(listing, "b") is None
    assert overlap("a", "a/b")
    assert overlap("a/b", "a")
    assert not overlap("a", "ab")


def test_the_store_keeps_what_is_edited_in_place(tmp_path):
    source = tmp_path / "weights"
    source.write_text("one")
    store = Store(tmp_path / "store")
    md5 = md5_file(source)
    assert store.keep(md5, [tmp_path / "nowhere", source])
    with source.open("r+") as file:
        file.write("two")
    assert store.path(md5).read_text() == "one"


def test_the_store_links_what_nobody_may_write(tmp_path):
    source = tmp_path / "cached"
    source.write_text("one")
    source.chmod(0o444)
    store = Store(tmp_path / "store")
    assert store.keep(md5_file(source), [source])
    assert os.stat(source).st_nlink == 2


def test_the_store_takes_nothing_else(tmp_path):
    source = tmp_path / "file"
    source.write_text("other")
    store = Store(tmp_path / "store")
    assert not store.keep("0" * 32, [source])
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


@pytest.mark.parametrize("before", [None, "file", "folder", "link"])
@pytest.mark.parametrize("made", ["file", "folder"])
def test_outputs_take_the_place_of_what_is_there(tmp_path, before, made):
    source, target = tmp_path / "made", tmp_path / "results" / "run"
    if made == "folder":
        (source / "deep").mkdir(parents=True)
        (source / "deep" / "a").write_text("new")
    else:
        source.write_text("new")
    target.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if before == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    elif before == "file":
        target.write_text("old")
    elif before == "link":
        target.symlink_to(elsewhere)
    place_path(source, target)
    assert not source.exists()
    assert not target.is_symlink()
    if made == "folder":
        assert [path.name for path in target.rglob("*")] == ["deep", "a"]
    else:
        assert target.read_text() == "new"
    assert not list(elsewhere.iterdir())


def test_links_appear_whole(tmp_path):
    (tmp_path / "source").write_text("whole")
    (tmp_path / "target").write_text("half")
    link(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "whole"
    with pytest.raises(FileNotFoundError):
        link(tmp_path / "nowhere", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]
