"""Suggestions as a configuration file, each with its reason as a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detseg import __version__
from detseg.coco.catalog import resolve_dataset
from detseg.coco.dataset import CocoDataset
from detseg.curation.inspection.advice import Suggestion, advise_balance, advise_pictures, advise_split
from detseg.curation.inspection.advise_detector import advise_anchors, advise_limits
from detseg.curation.inspection.advise_scale import Crops, NetworkScale, choose_crop, choose_scale
from detseg.curation.inspection.gather import Gathered, GatherOptions, gather
from detseg.curation.inspection.numbers import clean, describe, report_numbers
from detseg.errors import DataError
from detseg.files.atomic import make_folder, written_whole

_WIDTH = 118


def suggested_yaml(suggestions: Sequence[Suggestion], files: Sequence[str], classes: int, name: str) -> str:
    """Return the text of a configuration that others build on with `_BASE_`.

    files: the data that it was made for. classes: their number. name: of the file, for the line that shows its use.
    """
    presets = [suggestion.base for suggestion in suggestions if suggestion.base]
    bases = ["configs/_base_/mask_rcnn_fpn.yaml", *(f"configs/_base_/{preset}" for preset in presets), name]
    head = [
        "Suggested by detseg inspect_data for " + ", ".join(files) + ".",
        "To be built on, behind the network and a preset of augmentation, whose values it goes before:",
        f"  _BASE_: [{', '.join(bases)}]",
    ]
    lines = [part for line in head for part in _comment(line, "")]
    tree: dict[str, Any] = {}
    reasons: dict[str, list[str]] = {}
    _put(tree, "MODEL.ROI_HEADS.NUM_CLASSES", classes)
    for suggestion in suggestions:
        for key, value in suggestion.keys.items():
            _put(tree, key, value)
        if suggestion.keys:
            first = next(iter(suggestion.keys))
            reasons.setdefault(first, []).append(f"{suggestion.what} {suggestion.reason}")
    lines += _write(tree, "", 0, reasons)
    return "\n".join(lines) + "\n"


def check_suggested(path: Path, *, overwrite: bool) -> None:
    """Raise DataError where the file exists, unless `overwrite`."""
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists already; pass --overwrite to replace it, or name another file")


def write_suggested(path: Path, text: str, *, overwrite: bool) -> None:
    """Write the file. Raises DataError where it exists, unless `overwrite`, or cannot be written."""
    check_suggested(path, overwrite=overwrite)
    make_folder(path.parent)
    with written_whole(path, "the suggested configuration") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def _write(tree: dict[str, Any], prefix: str, depth: int, reasons: dict[str, list[str]]) -> list[str]:
    lines = []
    for name, value in tree.items():
        key, indent = f"{prefix}{name}", "  " * depth
        for reason in reasons.get(key, ()):
            lines += _comment(reason, indent)
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_write(value, f"{key}.", depth + 1, reasons)]
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
            lines.append(f"{indent}{name}: {text}")
    return lines


# A data set to its report: measure, describe, suggest.

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
