"""Hostile COCO files: any of them gives a data set whose every image can be asked for, or a DataError; nothing else."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers

SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])

HEIGHT, WIDTH = 6, 8

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, -(2**70), 60_000, 10**400]),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["../a", "a\0", "\ud800", "x" * 400, "a.png", "1"]),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Right values nearly always, so that the wrong ones are met deep inside and some files have none."""
    return st.integers(0, 99).flatmap(lambda number: JUNK if number == 23 else good)


def fields(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with these fields, now and then without one of them."""
    whole = st.fixed_dictionaries({key: mostly(value) for key, value in strategies.items()})
    return st.tuples(whole, st.sampled_from([*strategies, *[None] * 20])).map(
        lambda drawn: {key: value for key, value in drawn[0].items() if key != drawn[1]}
    )


NUMBERS = st.floats(-20, 20) | st.integers(-(10**6), 10**6)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=5).map(
    lambda points: [x for p in points for x in p]
)
POLYGONS = st.lists(mostly(POINTS), min_size=1, max_size=3)
SIZES = mostly(st.just([HEIGHT, WIDTH]))
COUNTS = st.lists(mostly(st.integers(0, HEIGHT * WIDTH)), max_size=5) | st.text("0123456789PQRo", max_size=6)
VALID = st.integers(0, 2 ** (HEIGHT * WIDTH) - 1).map(
    lambda bits: rle_codec.encode_mask(
        np.array([bits >> shift & 1 for shift in range(HEIGHT * WIDTH)], dtype=bool).reshape(HEIGHT, WIDTH)
    )["counts"].decode()
)
RLES = st.fixed_dictionaries(
    {"size": SIZES, "counts": st.integers(0, 9).flatmap(lambda number: COUNTS if number == 7 else VALID)}
)
CATEGORIES = mostly(st.just([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]))


def image(number: int) -> st.SearchStrategy[Any]:
    return fields(
        id=st.just(number),
        file_name=st.sampled_from([f"{number}.png", f"b/ü {number}.png"]),
        height=st.just(HEIGHT),
        width=st.just(WIDTH),
        group=st.text(max_size=3),
    )


def annotation(number: int, num_images: int) -> st.SearchStrategy[Any]:
    return fields(
        id=st.just(number),
        image_id=st.integers(1, max(num_images, 1)),
        category_id=st.integers(1, 2),
        segmentation=POLYGONS | RLES | RLES,
        iscrowd=st.integers(0, 1),
    )


@st.composite
def files(draw: st.DrawFn) -> Any:
    """A COCO file that is right or has a few things wrong anywhere."""
    num_images = draw(st.sampled_from([1, 2, 3, 0]))
    images = [draw(mostly(image(number))) for number in range(1, num_images + 1)]
    annotations = [
        draw(mostly(annotation(number, num_images))) for number in range(draw(st.sampled_from([1, 2, 4, 0])))
    ]
    content = {
        "info": draw(mostly(fields(image_root=st.just("images")))),
        "images": draw(mostly(st.just(images))),
        "annotations": draw(mostly(st.just(annotations))),
        "categories": draw(CATEGORIES),
    }
    content.pop(draw(st.sampled_from([*content, *["none"] * 40])), None)
    return content


def load(text: bytes, *, skip: bool) -> CocoDataset | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set.json"
        path.write_bytes(text)
        skipped: list[str] | None = [] if skip else None
        try:
            dataset = CocoDataset.load(path, skipped=skipped)
        except DataError:
            return None
        with contextlib.suppress(DataError):
            dataset.check_images_exist()
        return dataset


def check(dataset: CocoDataset) -> None:
    """Ask for everything that a training asks for."""
    counts = dataset.objects_per_image()
    assert len({record.image_id for record in dataset.images}) == len(dataset)
    for index, record in enumerate(dataset.images):
        rles, classes, crowd = dataset.annotations(index)
        assert len(rles) == len(classes) == len(crowd)
        assert ((classes >= 0) & (classes < len(dataset.categories))).all()
        assert counts[index].sum() >= (~crowd).sum()
        assert (rle_codec.area(rles) > 0).all()
        if record.height * record.width < 10_000:
            layers = LabelLayers.from_rles(rles, record.height, record.width)
            assert layers.areas().tolist() == rle_codec.area(rles).tolist()


@SETTINGS
@given(files(), st.booleans())
def test_nearly_right_files(content: Any, skip: bool) -> None:
    dataset = load(json.dumps(content).encode(), skip=skip)
    if dataset is not None:
        check(dataset)


@SETTINGS
@given(files())
def test_what_is_accepted_whole_is_the_same_when_bad_parts_are_skipped(content: Any) -> None:
    text = json.dumps(content).encode()
    strict = load(text, skip=False)
    if strict is None:
        return
    skipping = load(text, skip=True)
    assert skipping is not None
    assert skipping.images == [
        type(record)(**{**vars(record), "path": other.path})
        for record, other in zip(strict.images, skipping.images, strict=True)
    ]
    for index in range(len(strict)):
        assert skipping.annotations(index).rles == strict.annotations(index).rles


@SETTINGS
@given(JUNK | st.lists(JUNK))
def test_any_json(content: Any) -> None:
    dataset = load(json.dumps(content).encode(), skip=False)
    assert dataset is None


@SETTINGS
@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 400))
def test_damaged_bytes(junk: bytes, start: int, length: int) -> None:
    valid = json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 5, 0, 5, 5]]}],
        }
    ).encode()
    dataset = load(valid[:start] + junk + valid[start + length :], skip=False)
    if dataset is not None:
        check(dataset)
