"""Files that appear whole or not at all."""

from __future__ import annotations

import os

import pytest

from detseg.errors import DataError
from detseg.files.atomic import check_free, written_whole


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path, "the text") as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def fail_while_writing(path, error):
    with written_whole(path, "the text") as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize(("error", "seen"), [(KeyError("x"), KeyError), (OSError(28, "No space left"), DataError)])
def test_nothing_stays_of_a_failure(tmp_path, error, seen):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(seen):
        fail_while_writing(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(DataError, match="the text cannot be written"):
            fail_while_writing(folder / "a.txt", ValueError())


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    check_free("new.json", "new/folders/new.json", tmp_path / "new" / "a.csv", overwrite=False)
    with pytest.raises(DataError, match="file/below: the output folder cannot be made, file is not a folder"):
        check_free("file/below/p.json", overwrite=True)
    with pytest.raises(DataError, match="file exists already"):
        check_free("file", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is made"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_folders_without_permission_are_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match="no permission"):
            check_free(tmp_path / "below" / "p.json", overwrite=False)
    finally:
        tmp_path.chmod(0o700)
