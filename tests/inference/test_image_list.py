"""Which images a command line names."""

from __future__ import annotations

import json
import shlex

import cv2
import numpy as np
import pytest

from detseg.errors import DataError
from detseg.inference.image_list import find_images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.PNG", "c.tif", "notes.txt", "sub/d.png", "sub/a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            path.write_bytes(cv2.imencode(path.suffix.lower(), np.zeros((6, 8), np.uint8))[1].tobytes())
    return tmp_path


def names(source) -> list[str]:
    return [record.file_name for record in source.records]


def test_a_folder_gives_its_images_but_not_those_of_subfolders(folder):
    source = find_images([str(folder)])
    assert names(source) == ["a.PNG", "b.png", "c.tif"]
    assert [record.image_id for record in source.records] == [1, 2, 3]
    assert source.match(["x", "y"]) == [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]


def test_globs_files_and_folders_together_with_duplicates_once(folder):
    found = find_images([str(folder / "sub"), str(folder / "**" / "*.png"), str(folder / "sub" / "d.png")])
    assert names(found) == ["sub/a.png", "sub/d.png", "b.png"]
    assert names(find_images([str(folder / "sub" / "d.png")])) == ["d.png"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder):
    path = folder / "plate[1].png"
    (folder / "b.png").rename(path)
    assert names(find_images([str(path)])) == ["plate[1].png"]


def test_brackets_of_folders_are_those_of_their_names(folder):
    (folder / "sub").rename(folder / "plate[1]")
    assert names(find_images([str(folder / "plate[1]" / "*.png")])) == ["a.png", "d.png"]
    assert names(find_images([str(folder / "plate[1]" / "[ac].png")])) == ["a.png"]
    listing = folder / "plate[1]" / "list.txt"
    listing.write_text("*.png\nplate[9].png")
    with pytest.raises(DataError, match=r"plate\[9\].png holds no files that match"):
        find_images([str(listing)])
    listing.write_text("[d].png\na*.png")
    assert names(find_images([str(listing)])) == ["d.png", "a.png"]


def write_coco(folder, categories, images=("sub/d.png", "b.png")):
    data = {
        "images": [{"id": 7 - n, "file_name": name, "height": 6, "width": 8} for n, name in enumerate(images)],
        "annotations": [],
        "categories": categories,
    }
    path = folder / "set.json"
    path.write_text(json.dumps(data))
    return str(path)


def test_a_coco_file_keeps_its_ids_and_category_ids(folder):
    source = find_images([write_coco(folder, [{"id": 4, "name": "y"}, {"id": 9, "name": "x"}])])
    assert sorted((record.image_id, record.file_name) for record in source.records) == [(6, "b.png"), (7, "sub/d.png")]
    assert source.match(["x", "y"]) == [{"id": 9, "name": "x"}, {"id": 4, "name": "y"}]


def test_other_class_names_than_the_coco_file_are_said(folder, caplog):
    source = find_images([write_coco(folder, [{"id": 4, "name": "y"}])])
    assert source.match(["z"]) == [{"id": 1, "name": "z"}]
    assert "the model has the classes z" in caplog.text


def test_sources_without_images_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "empty", "holds no images"),
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "*.bmp", "match this pattern"),
    ):
        with pytest.raises(DataError, match=message):
            find_images([str(source)])
    with pytest.raises(DataError, match="alone"):
        find_images([write_coco(folder, []), str(folder)])
    with pytest.raises(DataError, match="no images"):
        find_images([write_coco(folder, [], images=())])


def test_images_of_subfolders_are_told_of_with_what_takes_them(tmp_path, caplog):
    for name in ("top/a.png", "top/b.png", "deep/x/c.tif", "deep/x/y/d.PNG", "deep/.hidden/e.png", "deep/x/._f.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert len(find_images([str(tmp_path / "top")]).records) == 2
    assert not caplog.text
    with pytest.raises(DataError, match="for the 2 in its subfolders") as refused:
        find_images([str(tmp_path / "deep")])
    (tmp_path / "deep" / "z.png").touch()
    assert len(find_images([str(tmp_path / "deep")]).records) == 1
    assert "2 images in its subfolders are left out" in caplog.text
    for text in (str(refused.value), caplog.text):
        globs = shlex.split(text.partition("--images ")[2])
        assert [record.file_name for record in find_images(globs).records] == ["y/d.PNG", "c.tif"]


def test_names_that_no_file_can_have_are_left_to_the_reader_that_lists_them(folder):
    listed = folder / "list.txt"
    listed.write_text(f"{'x' * 300}.png\n~nobody-of-this-name/a.png\nb.png\n")
    assert [record.path.name for record in find_images([str(listed)]).records] == ["x" * 300 + ".png", "a.png", "b.png"]
    with pytest.raises(DataError, match="does not exist"):
        find_images(["x" * 300])
