"""Files that appear whole or not at all."""

from __future__ import annotations

import pytest

from detseg.errors import DataError
from detseg.files.atomic import written_whole


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
