"""What is wrong with a data set: its file, its masks, its pictures, its parts. The worst of each kind are listed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.curation.inspection.gather import Gathered
from detseg.curation.leaks import leaks
from detseg.curation.repair.masks import crumbs_of, label_holes, pieces_of
from detseg.curation.repair.rules import RULES, RepairRules
from detseg.structures import rle as rle_codec

# Of each kind so many are listed, and drawn.
WORST = 12
# An object of more or less than so many times the median area of its class and kind is told of.
OUTSIZED = 25.0
# A picture whose focus is so many times below the median of its kind is told of; half is a matter of taste.
BLURRED = 6.0
SATURATED = 0.2
FLAT = 4.0


def problem_numbers(gathered: Gathered) -> dict[str, Any]:
    """Return what is wrong: masks by rule of repair, odd objects, pictures, images that are nearly the same."""
    return {
        "file": gathered.skipped[:200],
        "file_count": len(gathered.skipped),
        "missing": [_name(gathered, index) for index in gathered.missing],
        "unreadable": [{"file_name": _name(gathered, i), "problem": text} for i, text in gathered.unreadable.items()],
        "masks": {**_repairs(gathered), **_shapes(gathered)},
        "pictures": _pictures(gathered),
        "similar": _similar(gathered),
        "one_class_hint": gathered.one_class_hint,
    }


def _name(gathered: Gathered, index: int) -> str:
    return gathered.dataset.images[index].file_name


def _entry(
    title: str, remedy: str, image: np.ndarray, pixels: int | None, worst: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "title": title,
        "remedy": remedy,
        "objects": len(image),
        "images": len(np.unique(image)),
        "pixels": pixels,
        "worst": list(worst),
    }


def _repairs(gathered: Gathered) -> dict[str, Any]:
    """Return what the rules of repair find."""
    result = {}
    titles = dict(RULES)
    if gathered.rules.fragments == "keep":
        titles["fragments"] = "masks with pieces far apart: two objects under one number"
    for rule, title in titles.items():
        own = [(index, change) for index, change in gathered.changes if change.rule == rule]
        if not own:
            continue
        own.sort(key=lambda item: (-item[1].pixels, item[0], item[1].annotation))
        worst = [
            {
                "image": index,
                "number": change.annotation,
                "pixels": change.pixels,
                "note": _note(change),
                "defect": defect_of(gathered.dataset, index, int(change.annotation), rule, gathered.rules),
            }
            for index, change in own[:WORST]
        ]
        images = np.array([index for index, _ in own])
        result[rule] = _entry(title, "detseg repair", images, sum(change.pixels for _, change in own), worst)
    return result


def _note(change: Any) -> str:
    text = f"{change.action}, {change.area_before} to {change.area_after} px"
    return f"{text} ({change.other})" if change.action in ("split", "relabelled") else text


def _shapes(gathered: Gathered) -> dict[str, Any]:
    """Return what repair leaves by default: all holes, masks of several pieces, objects of odd size."""
    objects = gathered.objects
    result = {}
    for name, title, rows, pixels, remedy in (
        (
            "all_holes",
            "masks with holes, those around other objects too",
            objects.holes > 0,
            objects.hole_pixels,
            "holes=all",
        ),
        (
            "pieces",
            "masks of several pieces, near ones too",
            objects.pieces > 1,
            objects.lesser_pixels,
            "fragments=split or largest",
        ),
    ):
        found = np.flatnonzero(rows)
        worst = found[np.argsort(-pixels[found], kind="stable")][:WORST]
        # Where repair fills all holes, they are told of already.
        if len(found) and not (name == "all_holes" and _is_told(gathered, "holes", len(found))):
            rows_of_worst = [_row(gathered, index, int(pixels[index]), f"{pixels[index]} px", name) for index in worst]
            remedy = f"detseg repair --rules {remedy}"
            result[name] = _entry(title, remedy, objects.image[found], int(pixels[found].sum()), rows_of_worst)
    times = _times_typical(gathered)
    found = np.flatnonzero(np.maximum(times, 1 / times) > OUTSIZED) if len(times) else np.zeros(0, dtype=np.int64)
    if len(found):
        worst = found[np.argsort(-np.abs(np.log(times[found])), kind="stable")][:WORST]
        rows_of_worst = [
            _row(
                gathered,
                index,
                int(objects.areas[index]),
                f"{objects.areas[index]} px, {times[index]:.2g} x the median",
            )
            for index in worst
        ]
        title = f"objects of more, or less, than {OUTSIZED:g} times the median area of their class and kind"
        result["outsized"] = _entry(title, "look at them", objects.image[found], None, rows_of_worst)
    return result


def _is_told(gathered: Gathered, rule: str, count: int) -> bool:
    return sum(change.rule == rule for _, change in gathered.changes) >= count


def _row(gathered: Gathered, index: int, pixels: int, note: str, rule: str = "") -> dict[str, Any]:
    image, number = int(gathered.objects.image[index]), int(gathered.objects.number[index])
    row = {"image": image, "number": number, "pixels": pixels, "note": note}
    return row | ({"defect": defect_of(gathered.dataset, image, number, rule, gathered.rules)} if rule else {})


def defect_of(dataset: CocoDataset, image: int, number: int, rule: str, rules: RepairRules) -> dict[str, Any] | None:
    """Return the pixels that a rule is about, as an RLE with text counts: holes, crumbs, lesser pieces; else None."""
    record = dataset.images[image]
    mask, x0, y0 = rle_codec.decode_crop(dataset.table.rles(image, record.height, record.width)[0][number])
    mask = np.ascontiguousarray(mask)
    if rule in ("holes", "all_holes"):
        found = label_holes(mask)[0] > 0
    elif rule == "crumbs":
        found = crumbs_of(mask, rules.crumbs)
    elif rule in ("specks", "fragments", "pieces"):
        found = mask & ~pieces_of(mask)[0]
    else:
        return None
    if not found.any():
        return None
    rle = rle_codec.encode_crop(found, x0, y0, record.height, record.width)
    return {"size": rle["size"], "counts": bytes(rle["counts"]).decode("ascii")}


def _times_typical(gathered: Gathered) -> np.ndarray:
    """Return the areas as multiples of the median of the object's class in images of its kind, (N,)."""
    objects = gathered.objects
    groups = np.unique(np.array(gathered.groups), return_inverse=True)[1][objects.image]
    keys = groups * (int(objects.classes.max(initial=0)) + 1) + objects.classes
    times = np.ones(len(objects))
    for key in np.unique(keys):
        own = keys == key
        times[own] = objects.areas[own] / np.median(objects.areas[own])
    return times


def _pictures(gathered: Gathered) -> dict[str, Any]:
    """Return pictures that are out of focus for their kind, saturated, or flat."""
    read = gathered.intensities
    typical = {
        group: np.median([picture.focus for index, picture in read.items() if gathered.groups[index] == group])
        for group in {gathered.groups[index] for index in read}
    }
    ratio = {index: picture.focus / max(typical[gathered.groups[index]], 1e-12) for index, picture in read.items()}
    blurred = sorted((index for index in read if ratio[index] < 1 / BLURRED), key=lambda index: ratio[index])
    saturated = [index for index, picture in read.items() if picture.saturated > SATURATED]
    flat = [index for index, picture in read.items() if picture.high - picture.low < FLAT and picture.dtype == "uint8"]
    flat += [index for index, picture in read.items() if picture.high <= picture.low and picture.dtype != "uint8"]

    def entry(title: str, found: list[int], note: Any) -> dict[str, Any]:
        worst = [{"image": index, "note": note(index)} for index in found[:WORST]]
        return {"title": title, "images": len(found), "worst": worst}

    entries = {
        "blurred": entry(
            f"pictures with less than 1/{BLURRED:g} of the usual focus of their kind",
            blurred,
            lambda index: f"{percent_of(ratio[index])} of the median focus",
        ),
        "saturated": entry(
            f"pictures with more than {percent_of(SATURATED)} of their pixels at the largest value",
            sorted(saturated, key=lambda index: -read[index].saturated),
            lambda index: f"{percent_of(read[index].saturated)} saturated",
        ),
        "flat": entry(
            "pictures that show nothing", flat, lambda index: f"from {read[index].low:g} to {read[index].high:g}"
        ),
    }
    return {name: one for name, one in entries.items() if one["images"]}


def percent_of(share: float) -> str:
    return f"{100 * share:.0f} %"


def _similar(gathered: Gathered) -> dict[str, Any]:
    """Return images that are nearly the same; those of different files, or folds, are leaks."""
    origins = gathered.dataset.origins
    leaking = leaks(gathered.pairs, origins.tolist())
    ordered = sorted(leaking, key=lambda p: -p.similarity)
    ordered += sorted((p for p in gathered.pairs if origins[p.first] == origins[p.second]), key=lambda p: -p.similarity)
    images = {index for pair in gathered.pairs for index in (pair.first, pair.second)}
    return {
        "pairs": len(gathered.pairs),
        "images": len(images),
        "leaks": len(leaking),
        "worst": [
            {
                "first": pair.first,
                "second": pair.second,
                "similarity": pair.similarity,
                "turned": pair.turned,
                "leak": bool(origins[pair.first] != origins[pair.second]),
            }
            for pair in ordered[:WORST]
        ],
    }
