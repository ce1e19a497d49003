"""Predictions files that are hostile or broken: refused with their place, and never taken for whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results_cases import result, write_json
from scoring_cases import random_case

from detseg.coco.predictions_file import read_predictions, write_predictions
from detseg.errors import DataError, DetsegError

CATEGORIES = [{"id": 3, "name": "round"}, {"id": 9, "name": "länglich"}]
BAD_RESULTS = {
    "score is None": result(score=...),
    "score is 1.5": result(score=1.5),
    "score is 'high'": result(score="high"),
    "score is True": result(score=True),
    "quality is 1.01": result(quality=1.01),
    "quality is '0.5'": result(quality="0.5"),
    "quality is False": result(quality=False),
    "unknown category_id 4": result(category_id=4),
    "unknown category_id [1]": result(category_id=[1]),
    "bbox is [0, 0, 5]": result(bbox=[0, 0, 5]),
    "bbox is [0, 0, -5, 5]": result(bbox=[0, 0, -5, 5]),
    "bbox is [0, 0, 1000": result(bbox=[0, 0, 10**400, 5]),
    "bbox is 'box'": result(bbox="box"),
    "size [50, 40]": result(segmentation={"size": [50, 40], "counts": "PPYo0"}),
    "size None": result(segmentation={"counts": "PPYo0"}),
    "add up to": result(segmentation={"size": [40, 50], "counts": "0"}),
    "characters": result(segmentation={"size": [40, 50], "counts": "ä"}),
    "truncated": result(segmentation={"size": [40, 50], "counts": "P"}),
    "whole numbers": result(segmentation={"size": [40, 50], "counts": [0.5, 1999.5]}),
    "polygons": result(segmentation=[[0, 0, 5, 0, 5, 5]]),
    "int, expected a COCO RLE": result(segmentation=3),
    "has no segmentation, but others": result(segmentation=...),
    "cannot be unpacked": result(soft_mask={"size": [5, 5], "zlib": "!"}),
    "soft mask has the size [4, 5]": result(soft_mask={"size": [4, 5], "zlib": ""}),
    "soft mask has 0 bytes": result(soft_mask={"size": [5, 5], "zlib": "eJwDAAAAAAE="}),
}


@pytest.mark.parametrize("message", BAD_RESULTS)
def test_bad_results_are_refused_with_their_place(tmp_path, message):
    good = (
        result(soft_mask={"size": [5, 5], "zlib": "eJxjYMAPAAAZAAE="})
        if "soft_mask" in BAD_RESULTS[message]
        else result()
    )
    bad = {**BAD_RESULTS[message], "id": 12}
    first = [good] if "others" in message else []
    path = write_json(
        tmp_path / "r.json",
        {
            "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [*first, bad],
        },
    )
    with pytest.raises(DataError) as caught:
        list(read_predictions(path))
    expected = message.replace("others", "other results")
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "image 1, annotation id 12" in str(caught.value)


BAD_FILES = {
    "not complete JSON": '{"annotations": [',
    "neither": "3",
    "neither a": '{"images": []}',
    "`images` is dict": '{"annotations": [], "categories": [], "images": {}}',
    "images[0]": '{"annotations": [], "categories": [], "images": [{"id": 1, "height": -3, "width": 3}]}',
    "id 1 occurs twice": '{"annotations": [], "categories": [], "images": ['
    '{"id": 1, "height": 3, "width": 3}, {"id": 1, "height": 3, "width": 3}]}',
    "`categories` is str": '{"annotations": [], "categories": "cell"}',
    "categories[0]": '{"annotations": [], "categories": ["cell"]}',
    "category id 1 occurs twice": '{"annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
    "`info` is list": '{"annotations": [], "info": [1]}',
    "annotations[0]": "[5]",
    "annotations[0] is": '[{"image_id": [1], "category_id": 1}]',
    "category_id None": '[{"image_id": 1}]',
    "NaN is not a valid number": '[{"image_id": 1, "category_id": 1, "score": NaN}]',
    "not JSON text": b"\xff\xfe\x00",
    "not complete": "[" * 100_000,
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_files_are_refused(tmp_path, message):
    content = BAD_FILES[message]
    path = tmp_path / "r.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(read_predictions(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path, said in (
        (tmp_path / "missing.json", "cannot be read"),
        (tmp_path, "is a folder; expected a COCO or Pred"),
    ):
        with pytest.raises(DataError, match=said):
            read_predictions(path)


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_cut_off_files_are_never_taken_for_whole(tmp_path, name):
    _, predictions = random_case(0)
    path = tmp_path / name
    write_predictions(path, predictions, CATEGORIES)
    whole = path.read_bytes()
    # Without its last line end, a plain file is still complete.
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"p\.json"):
            list(read_predictions(path))


def test_lines_in_another_order_are_refused(tmp_path):
    _, predictions = random_case(0)
    path = tmp_path / "p.json"
    write_predictions(path, predictions, CATEGORIES)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1], lines[2] = lines[2] + ",", lines[1]
    lines[2] += "," if not lines[2].endswith(",") else ""
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match="order of `images`"):
        list(read_predictions(path))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**25) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["image_id", "category_id", "score", "bbox", "segmentation", "soft_mask", "id"]


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(KEYS), ANYTHING, min_size=1, max_size=2), rest=ANYTHING)
def test_any_value_anywhere_is_read_or_refused(tmp_path_factory, changes, rest):
    path = tmp_path_factory.mktemp("hostile") / "r.json"
    for content in (
        [result(**changes)],
        rest,
        {"annotations": [result(**changes)], "categories": rest, "images": rest},
    ):
        write_json(path, content)
        try:
            images = list(read_predictions(path))
        except DetsegError:
            continue
        assert all(np.isfinite(image.boxes).all() for image in images)
