"""QuPath's GeoJSON: one file of objects per image; polygons with holes, several parts, and classifications."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detseg.coco.checking import kind_of, shown
from detseg.coco.masks import fill_polygons
from detseg.errors import DataError
from detseg.files.atomic import written_whole
from detseg.formats.annotated_images import AnnotatedImages
from detseg.formats.objects import ImageObjects
from detseg.formats.outlines import trace_polygons
from detseg.formats.reader import FoundObjects, objects_of_crops
from detseg.images.reading import SUFFIXES
from detseg.structures import rle as rle_codec
from detseg.structures.mask_crop import MaskCrop, runs_of_crops
from detseg.structures.overlaps import shared_pixels

OBJECT_TYPES = ("annotation", "detection", "cell", "tile", "tma_core", "root")
# QuPath classes that end in a star are not objects: Ignore* is a region that is not labelled.
_IGNORED = "Ignore*"


@dataclass(frozen=True)
class GeoJsonOptions:
    """Which objects of a file are read, and their classes.

    class_name: of objects without classification. object_types: of `OBJECT_TYPES`; empty for annotations, detections
    and cells (an object without type is an annotation). nuclei: use the nucleus of a cell instead of its outline.
    """

    class_name: str = "cell"
    object_types: Sequence[str] = ()
    nuclei: bool = False


class GeoJson(AnnotatedImages):
    """Images with QuPath GeoJSON files; classifications are classes. Additional arguments: `GeoJsonOptions`."""

    kind = "QuPath objects"
    expected = "NAME.geojson (or NAME.png.geojson) as exported by QuPath"

    def __init__(
        self, source: Path, annotations: Path | None = None, *, allow_empty: bool = False, **options: Any
    ) -> None:
        self._options = GeoJsonOptions(**options)
        super().__init__(source, annotations, allow_empty=allow_empty)

    def image_of(self, file: str) -> str | None:
        path = PurePosixPath(file)
        if path.suffix.lower() not in (".geojson", ".json"):
            return None
        inner = path.with_suffix("")  # a.png.geojson as well as a.geojson
        return (inner.with_suffix("") if inner.suffix.lower() in SUFFIXES else inner).as_posix()

    def read_annotation(self, data: bytes, where: str, height: int, width: int) -> FoundObjects:
        return read_features(data, where, height, width, self._options)


def read_features(
    data: bytes, where: str, height: int, width: int, options: GeoJsonOptions = GeoJsonOptions()
) -> FoundObjects:
    """Read the objects of an image of height x width pixels, labelled with their classification.

    Objects of the class Ignore* are regions to be ignored; those of other classes with a star (Region*) are left out.
    Geometries that are not areas, have invalid coordinates or cover no pixel go to `problems`.

    Raises DataError if the file is not GeoJSON, or if it is not given whether annotations around detections are
    objects.
    """
    crops: list[MaskCrop] = []
    labels: list[str] = []
    kinds: list[str] = []
    problems: list[str] = []
    for number, feature in enumerate(_features(data, where)):
        try:
            properties = _object(feature.get("properties") or {}, "its properties")
            label = _classification(properties, options.class_name)
            kind = _object_type(feature, properties)
            if kind not in (options.object_types or OBJECT_TYPES[:3]) or (label.endswith("*") and label != _IGNORED):
                continue
            geometry = feature.get("geometry")
            if options.nuclei and kind == "cell":
                geometry = feature.get("nucleusGeometry")
                if not geometry:
                    raise DataError("is a cell without a nucleus, which --nuclei needs; --skip-bad skips it")
            polygons = _polygons(_object(geometry, "its geometry"))
            crop = fill_polygons([[_ring(ring) for ring in polygon] for polygon in polygons], height, width)
            if not crop.mask.any():
                raise DataError(f"covers no pixel of the image of {height} x {width} (height x width)")
            crops.append(crop)
            labels.append(label)
            kinds.append(kind)
        except DataError as error:
            own = feature.get("properties")
            name = own.get("name") if isinstance(own, dict) else None
            called = f"object number {number}" + (f" ({name})" if isinstance(name, str) else "")
            problems.append(f"{where}: {called}: {error}")
    if not options.object_types:
        _check_regions(crops, np.array([(kind == "annotation") for kind in kinds], dtype=bool), where, height, width)
    crowd = [label == _IGNORED for label in labels]
    return objects_of_crops(crops, height, width, labels=labels, crowd=crowd, problems=problems)


def _features(data: bytes, where: str) -> list[dict[str, Any]]:
    """Return the features of a collection, of a list, or a single one."""
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is truncated or not JSON ({error}); export it again") from None
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    features = [content] if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise DataError(f"{where}: is not GeoJSON; expected a FeatureCollection, or a list of features")
    if not all("geometry" in feature or feature.get("type") == "Feature" for feature in features):
        raise DataError(f"{where}: is not GeoJSON with objects; expected features with a geometry")
    return features


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{what}: found {kind_of(value)}, expected an object")
    return value


def _classification(properties: Mapping[str, Any], default: str) -> str:
    """Return the class name; multiple names are joined as QuPath shows them."""
    value = properties.get("classification")
    if isinstance(value, dict):
        names = value.get("names")
        is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
        value = ": ".join(names) if is_list else value.get("name")
    if value in (None, ""):
        return default
    if not isinstance(value, str):
        raise DataError(f"its classification is {shown(value)}; expected a name")
    return value


def _check_regions(crops: Sequence[MaskCrop], is_annotation: np.ndarray, where: str, height: int, width: int) -> None:
    """Refuse annotations that contain detections or cells: probably regions in which QuPath searched, not objects."""
    outer, inner = np.flatnonzero(is_annotation), np.flatnonzero(~is_annotation)
    if not len(outer) or not len(inner):
        return
    runs = [runs_of_crops([crops[index] for index in side], height, width) for side in (outer, inner)]
    overlaps = shared_pixels(*runs)
    inside = overlaps.pixels >= 0.5 * overlaps.second_areas[overlaps.second]
    regions = int((np.bincount(overlaps.first[inside], minlength=len(outer)) >= 2).sum())
    if regions:
        raise DataError(
            f"{where}: {regions} of its {len(outer)} annotations contain several of its {len(inner)} detections and "
            "cells, so they may be regions instead of objects; select the objects: --object-types detection cell, or "
            "--object-types annotation, or all three"
        )


def _object_type(feature: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    # QuPath up to 0.2 stores the type as the feature's id: PathAnnotationObject.
    kind = properties.get("objectType") or str(feature.get("id", "")).removeprefix("Path").removesuffix("Object")
    return str(kind).lower() if str(kind).lower() in OBJECT_TYPES else "annotation"


def _polygons(geometry: Mapping[str, Any]) -> list[list[Any]]:
    """Return the polygons of a geometry, each a list of rings: outline, then holes."""
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        parts = [_polygons(_object(part, "a part of its geometry")) for part in geometry["geometries"]]
        return [polygon for part in parts for polygon in part]
    if kind not in ("Polygon", "MultiPolygon"):
        raise DataError(f"is a {shown(kind)}; expected an area (Polygon, MultiPolygon)")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise DataError(f"its coordinates are {kind_of(coordinates)}; expected rings [[[x, y], ...], ...]")
    return polygons


def _ring(points: Any) -> np.ndarray:
    """Return a ring as (P, 2) float64 x, y, without a third coordinate."""
    try:
        ring = np.array([(point[0], point[1]) for point in points], dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise DataError("has an invalid ring; expected points [[x, y], ...]") from None
    if not np.isfinite(ring).all():
        raise DataError("has a coordinate that is not finite")
    return ring


# Writing. Colours that can be distinguished with any colour vision (Okabe and Ito 2008).
_COLOURS = ((255, 176, 0), (64, 190, 255), (0, 200, 140), (240, 110, 180), (240, 228, 66), (235, 95, 20))


def write_geojson(path: Path, objects: ImageObjects, class_names: Sequence[str]) -> None:
    """Write a FeatureCollection with a Polygon or MultiPolygon per object, in pixels along pixel edges.

    Annotations become QuPath annotations, which can be edited there; predictions become detections, with their score as
    a measurement. An existing file is replaced.
    """
    with written_whole(path, "the GeoJSON") as temporary, open(temporary, "w", encoding="ascii", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for index, crop in enumerate(rle_codec.decode_crops(objects.rles)):
            polygons = [[[*ring.tolist(), ring[0].tolist()] for ring in rings] for rings in trace_polygons(*crop)]
            if not polygons:
                continue
            geometry = {"type": "MultiPolygon", "coordinates": polygons}
            if len(polygons) == 1:
                geometry = {"type": "Polygon", "coordinates": polygons[0]}
            class_index = int(objects.classes[index])
            colour = list(_COLOURS[class_index % len(_COLOURS)])
            properties: dict[str, Any] = {
                "objectType": "annotation" if objects.scores is None else "detection",
                "name": str(index + 1),
                "classification": {"name": class_names[class_index], "color": colour},
            }
            if objects.scores is not None:
                properties["measurements"] = {"score": float(f"{objects.scores[index]:.6g}")}
            feature = {"type": "Feature", "geometry": geometry, "properties": properties}
            file.write(separator + json.dumps(feature, separators=(",", ":")))
            separator = ",\n"
        file.write("\n]}\n")
