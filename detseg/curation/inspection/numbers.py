"""The report of what was gathered: plain values for JSON, distributions as counts: figures need nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from detseg.curation.inspection.advice import class_weights
from detseg.curation.inspection.advise_scale import pixel_sizes
from detseg.curation.inspection.gather import Gathered
from detseg.curation.inspection.problems import problem_numbers

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
# Bins an octave.
_FINE = 4


def describe(values: np.ndarray) -> dict[str, float] | None:
    """Return count, mean, least, quantiles and largest of values (N,), NaN left out; None where there is none."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    quantiles = {name: float(np.quantile(values, share)) for name, share in _QUANTILES.items()}
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "min": float(values.min()),
        **quantiles,
        "max": float(values.max()),
    }


def clean(value: Any) -> Any:
    """Return a value with what JSON does not know made plain: NumPy's numbers, NaN and infinity (null)."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [clean(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if not math.isfinite(value) else float(f"{value:.6g}")
    return value


def report_numbers(gathered: Gathered) -> dict[str, Any]:
    """Return all sections of the report but anchors and suggestions."""
    return {
        "files": _files(gathered),
        "classes": gathered.dataset.class_names,
        "group_field": gathered.group_field,
        "images": _images(gathered),
        "objects": _objects(gathered),
        "distributions": _distributions(gathered),
        "pictures": _pictures(gathered),
        "problems": problem_numbers(gathered),
    }


def diameters(gathered: Gathered) -> np.ndarray:
    """Return the diameters of discs of the objects' areas, pixels: (N,) float64."""
    return np.sqrt(4 / np.pi * gathered.objects.areas)


def _files(gathered: Gathered) -> list[dict[str, Any]]:
    origins, images = gathered.dataset.origins, gathered.objects.image
    return [
        {"name": name, "images": int((origins == n).sum()), "objects": int((origins[images] == n).sum())}
        for n, name in enumerate(gathered.names)
    ]


def _images(gathered: Gathered) -> dict[str, Any]:
    records = gathered.dataset.images
    sizes: dict[tuple[int, int], int] = {}
    for record in records:
        sizes[record.height, record.width] = sizes.get((record.height, record.width), 0) + 1
    counts = gathered.dataset.objects_per_image()
    micrometres = pixel_sizes(gathered)
    frequent = sorted(sizes.items(), key=lambda item: -item[1])
    return {
        "count": len(records),
        "empty": int((counts.sum(axis=1) == 0).sum()),
        "crowd_regions": int(gathered.crowd.sum()),
        "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in frequent],
        "pixel_size": describe(micrometres),
        "by_group": _by_group(gathered, counts),
        "rows": _image_rows(gathered, counts),
    }


def _by_group(gathered: Gathered, counts: np.ndarray) -> dict[str, Any]:
    groups = np.array(gathered.groups)
    names = gathered.dataset.class_names
    return {
        group: {
            "images": int((groups == group).sum()),
            "objects": dict(zip(names, counts[groups == group].sum(axis=0).tolist(), strict=True)),
        }
        for group in sorted(set(gathered.groups))
    }


def _image_rows(gathered: Gathered, counts: np.ndarray) -> list[dict[str, Any]]:
    """Return one row an image; measurements of pictures are there where it was read."""
    records = gathered.dataset.images
    covered = np.bincount(gathered.objects.image, weights=gathered.objects.areas, minlength=len(records))
    rows = []
    for index, record in enumerate(records):
        picture = gathered.intensities.get(index)
        row = {
            "file_name": record.file_name,
            "file": int(gathered.dataset.origins[index]),
            "group": gathered.groups[index],
            "objects": int(counts[index].sum()),
            "covered": covered[index] / (record.height * record.width),
        }
        if picture is not None:
            names = ("dtype", "channels", "low", "median", "high", "mean", "std", "saturated", "focus", "colour")
            row |= {name: getattr(picture, name) for name in names} | {"contrast": picture.contrast}
        rows.append(row)
    return rows


def _objects(gathered: Gathered) -> dict[str, Any]:
    objects = gathered.objects
    counts = np.bincount(objects.classes, minlength=len(gathered.dataset.class_names))
    weights = class_weights(counts)
    numbers = {"count": len(objects), **_summary(gathered, np.ones(len(objects), dtype=bool))}
    numbers["classes"] = {
        name: {"weight": weights[number], **_summary(gathered, objects.classes == number)}
        for number, name in enumerate(gathered.dataset.class_names)
    }
    groups = np.array(gathered.groups)[objects.image]
    numbers["groups"] = {name: _summary(gathered, groups == name) for name in sorted(set(gathered.groups))}
    pairs = {"overlapping": objects.overlapping, "touching": objects.touching, "near": objects.near}
    numbers["pairs"] = {name: int(values.sum()) // 2 for name, values in pairs.items()}
    return numbers


def _summary(gathered: Gathered, rows: np.ndarray) -> dict[str, Any]:
    objects = gathered.objects.select(rows)
    micrometres = pixel_sizes(gathered)[objects.image]
    size = np.sqrt(4 / np.pi * objects.areas)
    total = max(len(objects), 1)
    return {
        "objects": len(objects),
        "images": len(np.unique(objects.image)),
        "diameter": describe(size),
        "diameter_um": describe(size * micrometres),
        "elongation": describe(objects.elongation),
        "at_border": float(objects.at_border.sum() / total),
        "overlapping": float((objects.overlapping > 0).sum() / total),
        "touching": float(((objects.touching > 0) | (objects.overlapping > 0)).sum() / total),
        "near": float(((objects.near + objects.touching + objects.overlapping) > 0).sum() / total),
        "shared": float(objects.shared.mean()) if len(objects) else None,
    }


def _distributions(gathered: Gathered) -> dict[str, Any]:
    """Return counts of objects in bins, for all classes and groups."""
    objects = gathered.objects
    aspect = np.log2(objects.heights / np.maximum(objects.widths, 1e-9)) if len(objects) else np.zeros(0)
    contacts = objects.overlapping + objects.touching
    values = {
        "diameter": (np.log2(np.maximum(diameters(gathered), 0.5)), 1 / _FINE),
        "aspect": (np.clip(aspect, -4, 4), 1 / 4),
        "elongation": (np.clip(objects.elongation, 1, 8), 1 / 4),
        "contacts": (np.minimum(contacts, 10).astype(np.float64), 1.0),
    }
    groups = np.array(gathered.groups)[objects.image]
    names = gathered.dataset.class_names
    result = {}
    for name, (column, step) in values.items():
        edges = _edges(column, step)
        result[name] = {
            "edges": edges,
            "classes": {c: _counts(column[objects.classes == n], edges) for n, c in enumerate(names)},
            "groups": {g: _counts(column[groups == g], edges) for g in sorted(set(gathered.groups))},
        }
    return result


def _edges(values: np.ndarray, step: float) -> list[float]:
    if not len(values):
        return [0.0, step]
    first, last = math.floor(values.min() / step), math.floor(values.max() / step) + 1
    return [step * number for number in range(first, last + 1)]


def _counts(values: np.ndarray, edges: list[float]) -> list[int]:
    return np.histogram(values, bins=edges)[0].tolist()


def _pictures(gathered: Gathered) -> dict[str, Any]:
    read = gathered.intensities
    groups = sorted(set(gathered.groups))
    chosen = {group: [read[i] for i in read if gathered.groups[i] == group] for group in groups}
    return {
        "there": len(gathered.dataset) - len(gathered.missing),
        "chosen": len(gathered.chosen),
        "read": len(read),
        "dtypes": _tally(picture.dtype for picture in read.values()),
        "channels": _tally(picture.channels for picture in read.values()),
        "coloured": sum(picture.is_coloured for picture in read.values()),
        "bright_ground": sum(picture.is_bright for picture in read.values()),
        "by_group": {
            group: {
                name: describe(np.array([getattr(picture, name) for picture in own], dtype=np.float64))
                for name in ("low", "median", "high", "contrast", "noise", "focus", "saturated")
            }
            for group, own in chosen.items()
        },
    }


def _tally(values: Iterable[Any]) -> dict[str, int]:
    result: dict[str, int] = {}
    for value in values:
        result[str(value)] = result.get(str(value), 0) + 1
    return result
