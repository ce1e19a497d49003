"""A data set to its report: measure, describe, suggest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detseg import __version__
from detseg.data.catalog import resolve_dataset
from detseg.data.coco import CocoDataset
from detseg.data.inspection.advise_detector import advise_anchors, advise_limits
from detseg.data.inspection.advise_pictures import advise_pictures
from detseg.data.inspection.advise_scale import Crops, NetworkScale, choose_crop, choose_scale
from detseg.data.inspection.advise_split import advise_balance, advise_split
from detseg.data.inspection.gather import Gathered, GatherOptions, gather
from detseg.data.inspection.numbers import clean, describe, report_numbers
from detseg.data.inspection.suggestion import Suggestion
from detseg.errors import DataError

# Of the report's form.
VERSION = 1
# Bins an octave of widths and heights.
SHAPE_BINS = 6


@dataclass(frozen=True)
class Inspection:
    """What was found.

    report: all numbers, plain values for JSON. dataset: what its image indices count. suggestions: those of the report.
    """

    report: dict[str, Any]
    dataset: CocoDataset
    suggestions: list[Suggestion]


def inspect_data(sources: Sequence[str], options: GatherOptions, image_root: str = "") -> Inspection:
    """Inspect data sets, by names of the catalog or paths of COCO files, as the parts of one.

    Bad images and annotations of the files, missing and broken pictures are told of in the report.
    Raises DataError where a file is no COCO data set, the classes differ, or there is no image.
    """
    if len(set(sources)) < len(sources):
        raise DataError(f"--data names a file twice: {', '.join(sources)}")
    skipped: list[str] = []
    datasets = [_load(source, image_root, skipped) for source in sources]
    gathered = gather(datasets, skipped, options)
    numbers = report_numbers(gathered)
    scale, about_scale = choose_scale(gathered)
    crops, about_crop = choose_crop(gathered, scale)
    anchors, about_anchors = advise_anchors(gathered, scale)
    suggestions = [
        about_scale,
        about_crop,
        about_anchors,
        *advise_limits(gathered, crops),
        *advise_pictures(gathered),
        *advise_balance(gathered),
        advise_split(gathered, str(sources[0])),
    ]
    report = {
        "version": VERSION,
        "detseg": __version__,
        **numbers,
        "network": _network(gathered, scale, crops),
        "anchors": anchors,
        "suggestions": [suggestion.to_dict() for suggestion in suggestions],
    }
    return Inspection(clean(report), gathered.dataset, suggestions)


def _load(source: str, image_root: str, skipped: list[str]) -> CocoDataset:
    entry = resolve_dataset(source)
    dataset = CocoDataset.load(entry.json, Path(image_root) if image_root else entry.image_root, skipped=skipped)
    return dataset.with_classes(entry.classes) if entry.classes else dataset


def _network(gathered: Gathered, scale: NetworkScale, crops: Crops) -> dict[str, Any]:
    """Return what the network sees with the suggestions: sides of objects, and boxes counted by width and height."""
    lengths = scale.boxes[:, 2:] - scale.boxes[:, :2]
    bins = np.floor(np.log2(np.maximum(lengths, 0.5)) * SHAPE_BINS).astype(np.int64)
    cells, counts = np.unique(bins, axis=0, return_counts=True)
    return {
        "min_size": scale.min_size,
        "pixel_size": scale.pixel_size,
        "factor": scale.factor,
        "side_before": describe(gathered.objects.sides),
        "side": describe(scale.sides),
        "spreads": scale.spreads,
        "crop": crops.size,
        "objects_in_crop": describe(crops.counts),
        "empty_crops": crops.empty,
        "shapes": {"bins_an_octave": SHAPE_BINS, "cells": np.column_stack([cells, counts])},
    }
