"""The report of the measurements: plain values for JSON, distributions as histograms; figures need nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from detseg.curation.inspection.advice import class_weights
from detseg.curation.inspection.gather import Measurements
from detseg.curation.inspection.measure import BOUNDARY_WIDTHS
from detseg.curation.inspection.problems import problem_numbers

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def describe(values: np.ndarray) -> dict[str, float] | None:
    """Return count, mean, minimum, quantiles and maximum of values (N,) without NaN; None if there are none."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    quantiles = dict(zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values())), strict=True))
    return {"count": len(values), "mean": values.mean(), "min": values.min(), **quantiles, "max": values.max()}


def clean(value: Any) -> Any:
    """Return a value with NumPy numbers converted, and NaN and infinity as None, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [clean(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def report_numbers(data: Measurements) -> dict[str, Any]:
    """Return all sections of the report except anchors and suggestions, to be passed to `clean`."""
    origins = data.dataset.origins
    object_origins = origins[data.objects.image]
    return {
        "files": [
            {"name": name, "images": (origins == number).sum(), "objects": (object_origins == number).sum()}
            for number, name in enumerate(data.files)
        ],
        "classes": data.dataset.class_names,
        "group_field": data.group_field,
        "images": _images(data),
        "objects": _objects(data),
        "distributions": _distributions(data),
        "pictures": _intensities(data),
        # Mean F1 of objects reconstructed from three pixel classes, by width of the touching boundary.
        "class_fidelity": {
            width: values.mean() for width, values in zip(BOUNDARY_WIDTHS, data.fidelity.T, strict=True) if len(values)
        },
        "problems": problem_numbers(data),
    }


def _images(data: Measurements) -> dict[str, Any]:
    records, names, groups = data.dataset.images, data.dataset.class_names, np.array(data.groups)
    counts = data.dataset.objects_per_image()
    covered = np.bincount(data.objects.image, weights=data.objects.area, minlength=len(records))
    rows = []
    for index, record in enumerate(records):
        row = {
            "file_name": record.file_name,
            "file": data.dataset.origins[index],
            "group": data.groups[index],
            "objects": counts[index].sum(),
            "covered": covered[index] / (record.height * record.width),
        }
        # Only for images that were read.
        if (one := data.intensities.get(index)) is not None:
            for name in ("dtype", "channels", "low", "median", "high", "mean", "std", "saturated", "focus", "colour"):
                row[name] = getattr(one, name)
            row["contrast"] = one.contrast
        rows.append(row)
    sizes = Counter((record.height, record.width) for record in records)
    return {
        "count": len(records),
        "empty": (counts.sum(axis=1) == 0).sum(),
        "crowd_regions": data.crowd.sum(),
        "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in sizes.most_common()],
        "pixel_size": describe(data.pixel_sizes),
        "by_group": {
            group: {
                "images": (groups == group).sum(),
                "objects": dict(zip(names, counts[groups == group].sum(axis=0), strict=True)),
            }
            for group in sorted(set(data.groups))
        },
        "rows": rows,
    }


def _objects(data: Measurements) -> dict[str, Any]:
    objects, names = data.objects, data.dataset.class_names
    weights = class_weights(np.bincount(objects.class_index, minlength=len(names)))
    return {
        "count": len(objects),
        **_summary(data, np.ones(len(objects), dtype=bool)),
        "classes": {
            name: {"weight": weights[number], **_summary(data, objects.class_index == number)}
            for number, name in enumerate(names)
        },
        "groups": {name: _summary(data, data.object_groups == name) for name in sorted(set(data.groups))},
        "pairs": {name: objects[name].sum() // 2 for name in ("overlapping", "touching", "near")},
    }


def _summary(data: Measurements, rows: np.ndarray) -> dict[str, Any]:
    """Return statistics of the objects of one class or group; rows: (N,) bool."""
    objects = data.objects[rows]
    diameters = _diameters(objects)
    total = max(len(objects), 1)
    touching = objects.touching + objects.overlapping
    return {
        "objects": len(objects),
        "images": len(np.unique(objects.image)),
        "diameter": describe(diameters),
        "diameter_um": describe(diameters * data.pixel_sizes[objects.image]),
        "elongation": describe(objects.elongation),
        "at_border": objects.at_border.sum() / total,
        "overlapping": (objects.overlapping > 0).sum() / total,
        "touching": (touching > 0).sum() / total,
        "near": (objects.near + touching > 0).sum() / total,
        "shared": objects.shared.mean() if len(objects) else None,
    }


def _diameters(objects: np.recarray) -> np.ndarray:
    """Return the diameters in pixels of disks with the objects' areas: (N,) float64."""
    return np.sqrt(4 / np.pi * objects.area)


def _distributions(data: Measurements) -> dict[str, Any]:
    """Return histograms of the objects, for all, each class and each group."""
    objects = data.objects
    width, height = (objects.box[:, 2:] - objects.box[:, :2]).T
    columns = {
        # In octaves: values, bin width.
        "diameter": (np.log2(np.maximum(_diameters(objects), 0.5)), 1 / 4),
        "aspect": (np.clip(np.log2(height / np.maximum(width, 1e-9)), -4, 4), 1 / 4),
        "elongation": (np.clip(objects.elongation, 1, 8), 1 / 4),
        "contacts": (np.minimum(objects.overlapping + objects.touching, 10), 1.0),
    }
    result = {}
    for name, (values, step) in columns.items():
        first, last = (math.floor(limit / step) for limit in (values.min(), values.max())) if len(values) else (0, 0)
        edges = [step * number for number in range(first, last + 2)]
        classes = {
            one: np.histogram(values[objects.class_index == number], bins=edges)[0]
            for number, one in enumerate(data.dataset.class_names)
        }
        groups = {
            one: np.histogram(values[data.object_groups == one], bins=edges)[0] for one in sorted(set(data.groups))
        }
        result[name] = {"edges": edges, "classes": classes, "groups": groups}
    return result


def _intensities(data: Measurements) -> dict[str, Any]:
    read = data.intensities.values()
    by_group = {}
    for group in sorted(set(data.groups)):
        own = [one for index, one in data.intensities.items() if data.groups[index] == group]
        by_group[group] = {
            name: describe(np.array([getattr(one, name) for one in own], dtype=np.float64))
            for name in ("low", "median", "high", "contrast", "noise", "focus", "saturated")
        }
    return {
        "there": len(data.dataset) - len(data.missing),
        "chosen": len(data.chosen),
        "read": len(read),
        "dtypes": Counter(one.dtype for one in read),
        "channels": Counter(one.channels for one in read),
        "coloured": sum(one.is_coloured for one in read),
        "bright_ground": sum(one.is_bright for one in read),
        "by_group": by_group,
    }
