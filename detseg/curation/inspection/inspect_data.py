"""From data sets to a report with measurements and suggestions, and to a configuration with the suggestions."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detseg.coco.catalog import resolve_dataset
from detseg.coco.dataset import CocoDataset
from detseg.config.node import nested
from detseg.curation.inspection.advice import Suggestion, advise_balance, advise_intensities, advise_split
from detseg.curation.inspection.advise_detector import advise_anchors, advise_limits, advise_masks
from detseg.curation.inspection.advise_scale import Crops, NetworkScale, choose_crop, choose_scale
from detseg.curation.inspection.gather import InspectionOptions, Measurements, gather
from detseg.curation.inspection.numbers import clean, describe, report_numbers
from detseg.curation.synthetic import make_missing_sets
from detseg.errors import DataError
from detseg.version import __version__

# Version of the report's JSON.
VERSION = 2
# The default base of suggestions: the network that learns from scratch, and its schedule.
NETWORKS = ("configs/_base_/mask_rcnn_small_fpn.yaml", "configs/_base_/adamw_cosine.yaml")
# Histogram bins per octave of width and height.
SHAPE_BINS = 6


@dataclass(frozen=True)
class Inspection:
    """Result of an inspection.

    report: all numbers, plain values for JSON. dataset: the images that its indices refer to. suggestions: as objects.
    """

    report: dict[str, Any]
    dataset: CocoDataset
    suggestions: list[Suggestion]


def inspect_data(sources: Sequence[str], options: InspectionOptions, image_root: str = "") -> Inspection:
    """Inspect data sets, by catalog names or paths of COCO files, together.

    Bad images and annotations of the files, missing and broken images are listed in the report. Raises DataError if a
    file is not a COCO data set, the classes differ, or there are no images.
    """
    if len(set(sources)) < len(sources):
        raise DataError(f"--data has a file twice: {', '.join(sources)}")
    skipped: list[str] = []
    datasets = []
    for source in sources:
        make_missing_sets([source])
        entry = resolve_dataset(source)
        dataset = CocoDataset.load(entry.json, Path(image_root) if image_root else entry.image_root, skipped=skipped)
        datasets.append(dataset.with_classes(entry.classes) if entry.classes else dataset)
    data = gather(CocoDataset.match_classes(datasets), skipped, options)
    scale, about_scale = choose_scale(data)
    crops, about_crop = choose_crop(data, scale)
    anchors, about_anchors = advise_anchors(data, scale)
    suggestions = [
        about_scale,
        about_crop,
        about_anchors,
        *advise_limits(data, crops),
        *([advise_masks()] if len(data.objects) else []),
        *advise_intensities(data),
        *advise_balance(data),
        advise_split(data, str(sources[0])),
    ]
    report = {
        "version": VERSION,
        "detseg": __version__,
        **report_numbers(data),
        "network": _network(data, scale, crops),
        "anchors": anchors,
        "suggestions": [dataclasses.asdict(suggestion) for suggestion in suggestions],
    }
    return Inspection(clean(report), data.dataset, suggestions)


def _network(data: Measurements, scale: NetworkScale, crops: Crops) -> dict[str, Any]:
    """Return what the network sees with the suggestions: sides of objects, and counts of boxes by width and height."""
    lengths = scale.boxes[:, 2:] - scale.boxes[:, :2]
    bins = np.floor(np.log2(np.maximum(lengths, 0.5)) * SHAPE_BINS).astype(np.int64)
    cells, counts = np.unique(bins, axis=0, return_counts=True)
    return {
        "min_size": scale.min_size,
        "pixel_size": scale.pixel_size,
        "object_size": scale.object_size,
        "factor": scale.factor,
        "side_before": describe(data.sides),
        "side": describe(scale.sides),
        "spreads": scale.spreads,
        "crop": crops.size,
        "objects_in_crop": describe(crops.counts),
        "empty_crops": crops.empty,
        "shapes": {"bins_an_octave": SHAPE_BINS, "cells": np.column_stack([cells, counts])},
    }


def suggested_yaml(suggestions: Sequence[Suggestion], networks: Sequence[str]) -> str:
    """Return the YAML of a configuration, with the reason of each value as a comment.

    networks: files of `configs/` for `_BASE_`; the suggested augmentation presets are added after them.
    """
    presets = [f"configs/_base_/{suggestion.preset}" for suggestion in suggestions if suggestion.preset]
    head = "Suggested by detseg inspect_data. `configs/...` are found in detseg from any folder."
    values: dict[tuple[str, ...], Any] = {}
    reasons: dict[str, list[str]] = {}
    for suggestion in suggestions:
        values |= {tuple(key.split(".")): value for key, value in suggestion.keys.items()}
        if suggestion.keys:
            reasons.setdefault(next(iter(suggestion.keys)), []).append(f"{suggestion.advice} {suggestion.reason}")
    bases = ["_BASE_:", *(f"  - {base}" for base in (*networks, *presets))]
    return "\n".join([*_comment(head, ""), *bases, *_yaml_lines(nested(values), "", "", reasons)]) + "\n"


def _yaml_lines(section: Mapping[str, Any], path: str, indent: str, reasons: Mapping[str, list[str]]) -> list[str]:
    lines = []
    for name, value in section.items():
        lines += [line for reason in reasons.get(path + name, ()) for line in _comment(reason, indent)]
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_yaml_lines(value, f"{path}{name}.", f"{indent}  ", reasons)]
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
            lines.append(f"{indent}{name}: {text}")
    return lines


def _comment(text: str, indent: str) -> list[str]:
    begin = f"{indent}# "
    return textwrap.wrap(
        text, 118, initial_indent=begin, subsequent_indent=begin, break_long_words=False, break_on_hyphens=False
    )
