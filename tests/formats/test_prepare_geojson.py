"""QuPath's GeoJSON: holes and parts to the pixel, classifications, ignored regions, types, broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readers_for_tests import HEIGHT, WIDTH, expected_masks, labels_of, masks_by_class, run, write_image

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.geojson import GeoJsonOptions, read_features


def block(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(
    coordinates: Any,
    name: str | None = None,
    kind: str = "Polygon",
    object_type: str | None = "annotation",
    **more: Any,
) -> dict[str, Any]:
    """As QuPath 0.5 writes it."""
    properties: dict[str, Any] = {"objectType": object_type} if object_type else {}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "0-1", "geometry": geometry, "properties": properties, **more}


def features_of_labels() -> list[dict[str, Any]]:
    """The objects of `labels_of()`: a polygon, one with classification and three coordinates, a hole, two parts."""
    second = [[*point, 0.0] for point in block(9, 2, 13, 9)]
    return [
        feature([block(3, 2, 9, 9)], "Tumor"),
        feature([second], "Stroma", object_type="detection"),
        feature([block(10, 12, 20, 22), block(13, 15, 16, 18)], "Tumor"),
        feature([[block(30, 25, 34, 28)], [block(36, 25, 39, 28)]], kind="MultiPolygon", object_type="cell"),
    ]


NAMES = {4: "Tumor", 7: "Stroma", 9: "Tumor", 300: "nucleus"}


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def test_objects_to_the_pixel_in_every_layout(tmp_path: Path) -> None:
    source = tmp_path / "slides"
    for name in ("a", "b", "c"):
        write_image(source / f"{name}.png")
    write(source / "a.geojson", {"type": "FeatureCollection", "features": features_of_labels()})
    write(source / "b.png.geojson", features_of_labels())
    write(source / "c.json", features_of_labels()[0])
    assert run("prepare geojson", tmp_path / "out", "--source", source, "--split", "1", "--classes", "nucleus") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert dataset.class_names == ["Stroma", "Tumor", "nucleus"]
    for index in (0, 1):
        assert masks_by_class(dataset, index) == expected_masks(labels_of(), NAMES)
    assert masks_by_class(dataset, 2) == expected_masks(np.where(labels_of() == 4, 4, 0), "Tumor")


def test_a_map_joins_renames_and_leaves_out(tmp_path: Path) -> None:
    source = tmp_path / "slides"
    write_image(source / "a.png")
    write(source / "a.geojson", features_of_labels())
    (tmp_path / "map.csv").write_text("qupath,class\nTumor,cell\nStroma,\ncell,cell\n")
    words = ("--source", source, "--split", "1", "--classes-from", f"map:{tmp_path / 'map.csv'}")
    assert run("prepare geojson", tmp_path / "out", *words) == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    labels = labels_of()
    assert masks_by_class(dataset, 0) == expected_masks(np.where(labels == 7, 0, labels), "cell")


def encoded(features: Any) -> bytes:
    return json.dumps(features).encode()


def test_ignored_regions_are_neither_object_nor_background() -> None:
    features = [
        *features_of_labels(),
        feature([block(0, 0, 5, 5)], "Ignore*"),
        feature([block(0, 0, 40, 30)], "Region*"),
    ]
    found = read_features(encoded(features), "a.geojson", HEIGHT, WIDTH)
    assert found.crowd == [False] * 4 + [True]
    assert len(found.labels) == 5


def test_types_nuclei_and_classes_of_several_names() -> None:
    cell = feature([block(2, 2, 8, 8)], object_type="cell")
    cell["nucleusGeometry"] = {"type": "Polygon", "coordinates": [block(4, 4, 6, 6)]}
    several = feature([block(20, 20, 24, 24)], object_type=None, id="PathDetectionObject")
    several["properties"]["classification"] = {"names": ["Tumor", "Positive"]}
    features = [cell, several, feature([block(0, 0, 40, 30)], object_type="tile")]

    def areas(options: GeoJsonOptions) -> list[tuple[str, int]]:
        found = read_features(encoded(features), "a.geojson", HEIGHT, WIDTH, options)
        assert found.problems == []
        from detseg.structures import rle as rle_codec

        return list(zip(found.labels, rle_codec.area(found.rles).tolist(), strict=True))

    assert areas(GeoJsonOptions("x")) == [("x", 36), ("Tumor: Positive", 16)]
    assert areas(GeoJsonOptions("x", nuclei=True)) == [("x", 4), ("Tumor: Positive", 16)]
    assert areas(GeoJsonOptions("x", ["detection"])) == [("Tumor: Positive", 16)]
    assert areas(GeoJsonOptions("x", ["tile"])) == [("x", 1200)]


def test_what_is_no_area_is_told_with_its_place() -> None:
    nan = feature([block(0, 0, 5, 5)])
    nan["geometry"]["coordinates"][0][0] = [float("nan"), 1]
    features = [
        feature([[1, 1], [2, 2]], kind="LineString"),
        feature([block(50, 50, 60, 60)]),
        feature([["x", "y"], [1]]),
        feature(3),
        nan,
        {"type": "Feature", "geometry": None, "properties": {"name": "lost"}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [block(0, 0, 5, 5)]}, "properties": [1]},
        *features_of_labels(),
    ]
    found = read_features(encoded(features), "a.geojson", HEIGHT, WIDTH)
    assert len(found.rles) == 4
    said = "\n".join(found.problems)
    for text in (
        "number 0: is a 'LineString'; expected an area",
        "number 1: covers no pixel of the image of 30 x 40",
        "number 2: has an invalid ring",
        "number 3: its coordinates are",
        "number 4: has a coordinate that is not finite",
        "number 5 (lost): its geometry: found nothing",
        "number 6: its properties: found a list",
    ):
        assert text in said


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"type": "FeatureCollection"}', b'{"a": 1}', b"\xff", b"[" * 9000]
)
def test_what_is_no_geojson_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.geojson: is"):
        read_features(content, "a.geojson", HEIGHT, WIDTH)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.floats() | st.sampled_from(["Polygon", "MultiPolygon", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "geometry", "coordinates", "properties", "classification", "name", "geometries"]),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.lists(st.fixed_dictionaries({"geometry": JSON, "properties": JSON}), max_size=3))
def test_any_features_are_objects_or_problems(features: list[Any]) -> None:
    found = read_features(encoded(features), "a.geojson", HEIGHT, WIDTH)
    assert len(found.rles) + len(found.problems) <= len(features)
