"""Problems of a data set: in its file, masks, images and split. The worst of each kind are listed."""

from __future__ import annotations

from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.curation.inspection.gather import Measurements
from detseg.curation.leaks import leaks
from detseg.curation.repair.masks import label_holes, pieces_of, spurs_of
from detseg.curation.repair.rules import RULES, RepairRules
from detseg.structures import rle as rle_codec

# Number of examples of each problem that are listed and drawn.
WORST = 12
# An object is reported if its area is more than this factor above or below the median of its class and kind.
OUTSIZED = 25.0
# An image is reported if its focus is below the median of its kind by this factor; half is a matter of taste.
BLURRED = 6.0
SATURATED = 0.2
FLAT = 4.0


def problem_numbers(data: Measurements) -> dict[str, Any]:
    """Return all problems: masks by repair rule, unusual objects, images, near-duplicates."""
    names = [record.file_name for record in data.dataset.images]
    return {
        "file": data.skipped[:200],
        "file_count": len(data.skipped),
        "labels": data.label_warnings,
        "missing": [names[index] for index in data.missing],
        "unreadable": [{"file_name": names[index], "problem": text} for index, text in data.unreadable.items()],
        "masks": {**_repairs(data), **_odd_objects(data)},
        "pictures": _images(data),
        "similar": _similar(data),
        "one_class_hint": data.one_class_hint,
    }


def _repairs(data: Measurements) -> dict[str, Any]:
    """Return the findings of the repair rules."""
    titles = dict(RULES)
    if data.rules.fragments == "keep":
        titles["fragments"] = "masks with pieces far apart: two objects with one label"
    result = {}
    for rule, title in titles.items():
        own = [(index, change) for index, change in data.changes if change.rule == rule]
        own.sort(key=lambda item: (-item[1].pixels, item[0], item[1].annotation))
        worst = []
        for index, change in own[:WORST]:
            note = f"{change.action}, {change.area_before} to {change.area_after} px"
            note += f" ({change.other})" if change.action in ("split", "relabelled") else ""
            worst.append(_object(data, index, int(change.annotation), change.pixels, note, rule))
        if own:
            images = np.array([index for index, _ in own])
            pixels = sum(change.pixels for _, change in own)
            result[rule] = _finding(title, "detseg repair", images, pixels, worst)
    return result


def _odd_objects(data: Measurements) -> dict[str, Any]:
    """Return what repair leaves by default: all holes, masks of several pieces, objects of unusual size."""
    objects, result = data.objects, {}
    for name, title, found, pixels, rules in (
        (
            "all_holes",
            "masks with holes, including those around other objects",
            objects.holes,
            "hole_pixels",
            "holes=all",
        ),
        (
            "pieces",
            "masks of several pieces, including near ones",
            objects.pieces - 1,
            "lesser_pixels",
            "fragments=split or largest",
        ),
    ):
        rows = objects[found > 0]
        # If repair fills all holes, they have been reported.
        if not len(rows) or (name == "all_holes" and sum(c.rule == "holes" for _, c in data.changes) >= len(rows)):
            continue
        worst = [
            _object(data, int(row.image), int(row.number), int(row[pixels]), f"{row[pixels]} px", name)
            for row in rows[np.argsort(-rows[pixels], kind="stable")][:WORST]
        ]
        result[name] = _finding(title, f"detseg repair --rules {rules}", rows.image, int(rows[pixels].sum()), worst)
    # Relative to the median of the object's class in images of its kind.
    _, kind = np.unique(data.object_groups, return_inverse=True)
    times = np.ones(len(objects))
    for key in set(zip(kind.tolist(), objects.class_index.tolist(), strict=True)):
        own = (kind == key[0]) & (objects.class_index == key[1])
        times[own] = objects.area[own] / np.median(objects.area[own])
    found = np.flatnonzero(np.maximum(times, 1 / times) > OUTSIZED)
    if len(found):
        worst = []
        for index in found[np.argsort(-np.abs(np.log(times[found])), kind="stable")][:WORST]:
            row = objects[index]
            note = f"{row.area} px, {times[index]:.2g} x the median"
            worst.append(_object(data, int(row.image), int(row.number), int(row.area), note))
        title = f"objects more than {OUTSIZED:g} times larger or smaller than the median of their class and kind"
        result["outsized"] = _finding(title, "check them", objects.image[found], None, worst)
    return result


def _finding(title: str, remedy: str, images: np.ndarray, pixels: int | None, worst: list[Any]) -> dict[str, Any]:
    """Return the entry of the report for one kind of problem; images: of each affected object."""
    counts = {"objects": len(images), "images": len(np.unique(images)), "pixels": pixels}
    return {"title": title, "remedy": remedy, **counts, "worst": worst}


def _object(data: Measurements, image: int, number: int, pixels: int, note: str, rule: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {"image": image, "number": number, "pixels": pixels, "note": note}
    return row | ({"defect": defect_of(data.dataset, image, number, rule, data.rules)} if rule else {})


def defect_of(dataset: CocoDataset, image: int, number: int, rule: str, rules: RepairRules) -> dict[str, Any] | None:
    """Return the pixels that a rule would change (holes, spurs, smaller pieces) as an RLE with text counts, or None."""
    record = dataset.images[image]
    mask, x0, y0 = rle_codec.decode_crop(dataset.table.rles(image, record.height, record.width)[0][number])
    if rule in ("holes", "all_holes"):
        found = label_holes(mask)[0] > 0
    elif rule == "spurs":
        found = spurs_of(mask, rules.spurs)
    elif rule in ("specks", "fragments", "pieces"):
        found = mask & ~pieces_of(mask)[0]
    else:
        return None
    if not found.any():
        return None
    rle = rle_codec.encode_crop(found, x0, y0, record.height, record.width)
    return {"size": rle["size"], "counts": bytes(rle["counts"]).decode("ascii")}


def _images(data: Measurements) -> dict[str, Any]:
    """Return images that are out of focus for their kind, saturated, or flat."""
    read = data.intensities
    by_kind: dict[str, list[float]] = {}
    for index, one in read.items():
        by_kind.setdefault(data.groups[index], []).append(one.focus)
    typical = {kind: np.median(values) for kind, values in by_kind.items()}
    focus = {index: one.focus / max(typical[data.groups[index]], 1e-12) for index, one in read.items()}
    blurred = [index for index in read if focus[index] < 1 / BLURRED]
    saturated = [index for index in read if read[index].saturated > SATURATED]
    flat = [i for i, one in read.items() if one.high - one.low < FLAT and one.dtype == "uint8"]
    flat += [i for i, one in read.items() if one.high <= one.low and one.dtype != "uint8"]

    result = {}
    for name, title, found, note in (
        (
            "blurred",
            f"images with less than 1/{BLURRED:g} of the median focus of their kind",
            sorted(blurred, key=focus.__getitem__),
            lambda index: f"{100 * focus[index]:.0f} % of the median focus",
        ),
        (
            "saturated",
            f"images with more than {100 * SATURATED:.0f} % of their pixels at the largest value",
            sorted(saturated, key=lambda index: -read[index].saturated),
            lambda index: f"{100 * read[index].saturated:.0f} % saturated",
        ),
        ("flat", "images that show nothing", flat, lambda i: f"from {read[i].low:g} to {read[i].high:g}"),
    ):
        if found:
            worst = [{"image": index, "note": note(index)} for index in found[:WORST]]
            result[name] = {"title": title, "images": len(found), "worst": worst}
    return result


def _similar(data: Measurements) -> dict[str, Any]:
    """Return near-duplicate images; those in different files are leaks and listed first."""
    origins = data.dataset.origins.tolist()
    leaking = leaks(data.similar, origins)
    ordered = sorted(data.similar, key=lambda pair: (origins[pair.first] == origins[pair.second], -pair.similarity))
    return {
        "pairs": len(data.similar),
        "images": len({index for pair in data.similar for index in (pair.first, pair.second)}),
        "leaks": len(leaking),
        "worst": [{**vars(pair), "leak": origins[pair.first] != origins[pair.second]} for pair in ordered[:WORST]],
    }
