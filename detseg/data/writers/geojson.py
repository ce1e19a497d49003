"""QuPath: one GeoJSON file of objects an image; holes and separate parts are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detseg.data.writers.objects import ImageObjects
from detseg.data.writers.outlines import Polygon, trace_polygons
from detseg.structures import rle as rle_codec
from detseg.structures.atomic_write import written_whole

# Colours that people with any colour vision tell apart (Okabe and Ito 2008).
_COLOURS = ((255, 176, 0), (64, 190, 255), (0, 200, 140), (240, 110, 180), (240, 228, 66), (235, 95, 20))


def write_geojson(path: Path, objects: ImageObjects, class_names: Sequence[str]) -> None:
    """Write a FeatureCollection with a Polygon or MultiPolygon an object, in pixels along the edges of pixels.

    Annotations become QuPath's annotations, which can be corrected there; predictions become detections, with their
    score as a measurement. An existing file is replaced.
    """
    with written_whole(path, "the GeoJSON") as temporary, open(temporary, "w", encoding="ascii", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(_features(objects, class_names)):
            file.write((",\n" if number else "\n") + json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")


def _features(objects: ImageObjects, class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for index, crop in enumerate(rle_codec.decode_crops(objects.rles)):
        polygons = trace_polygons(*crop)
        if not polygons:
            continue
        class_index = int(objects.classes[index])
        properties: dict[str, Any] = {
            "objectType": "annotation" if objects.scores is None else "detection",
            "name": str(index + 1),
            "classification": {
                "name": class_names[class_index],
                "color": list(_COLOURS[class_index % len(_COLOURS)]),
            },
        }
        if objects.scores is not None:
            properties["measurements"] = {"score": float(f"{objects.scores[index]:.6g}")}
        yield {"type": "Feature", "geometry": _geometry(polygons), "properties": properties}


def _geometry(polygons: Sequence[Polygon]) -> dict[str, Any]:
    coordinates = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in polygons]
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}
