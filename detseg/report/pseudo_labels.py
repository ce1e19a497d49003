"""The page of a file of pseudo-labels: kept and refused objects, next to the labelled data, with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.coco.masks import box_to_rle
from detseg.coco.pseudo_labels import DECISIONS, IGNORED, KEPT
from detseg.errors import DataError
from detseg.files.atomic import check_free, write_output
from detseg.report.drawing import (
    draw_close_up,
    draw_objects,
    image_reader,
    object_colours,
    resize_display,
    window_around,
)
from detseg.report.html import jpeg_url, number, render
from detseg.structures import rle as rle_codec

# Number of close-ups per kind, and of whole images; their sides in pixels.
_SHOWN, _IMAGES, _CLOSE_UP, _WHOLE = 24, 12, 200, 480
# The minimum part of an image that a close-up shows.
_LEAST_WINDOW = 32
_OBJECT, _OTHERS = (255, 176, 0), (64, 190, 255)
_COLUMNS = {
    "sure_from": "sure from",
    "ignore_from": "ignored from",
    "wanted_per_image": "desired per image",
    "reached_per_image": "reached",
    "wanted_precision": "wanted precision",
    "precision": "precision",
    "precision_low": "95 % from",
    "precision_high": "to",
    "recall": "recall",
    "missed": "missed",
    "objects": "objects",
}
_CHOSEN = {
    "fixed": "As given.",
    "counts": "Chosen so that as many objects per image are sure as the labelled images of the group have.",
    "precision": "Chosen on labelled images that the models had not seen: the lowest with the desired precision. "
    "Precision and its interval are from limits chosen on other folds.",
}


def write_pseudo_label_page(path: Path, dataset: CocoDataset, *, overwrite: bool = False) -> None:
    """Write the page of pseudo-labels made by `detseg.semi_supervised.label_images`.

    Raises DataError if the file exists, unless `overwrite`, or the data set is of another kind.
    """
    check_free(path, overwrite=overwrite)
    write_output(path, _page(dataset), "the page")


def _page(dataset: CocoDataset) -> str:
    about = dataset.info.get("pseudo_labels", {})
    if not {"limits", "counts", "gates"} <= about.keys():
        raise DataError(f"{dataset.name}: its info has no gates; expected a file of `pseudo_label label`")
    objects = _objects(dataset)
    pictures = _Pictures(dataset)
    by_agreement = sorted(objects["kept"], key=lambda row: (row.get("agreement", 1.0), row["score"]))
    measure = "agreement of the members" if any("agreement" in row for row in objects["kept"]) else "score"
    refused = sorted(objects["dropped"], key=lambda row: -row["score"])
    close_ups = [
        ("Kept, worst first", f"Lowest {measure} first: look here for systematic errors.", by_agreement),
        (
            "Ignored",
            "Neither object nor background in any loss; highest scores first.",
            sorted(objects["ignored"], key=lambda row: -row["score"]),
        ),
        ("Refused", "Learned as background (their boxes are drawn); highest scores first.", refused),
    ]
    columns = [key for key in _COLUMNS if any(key in row for row in about["limits"])]
    left_out: dict[str, list[str]] = {}
    for row in dataset.further.get("left_out", []):
        left_out.setdefault(row["kind"], []).append(f"{row['file_name']}: {row['why']}")
    tiles = [(number(about["images"]["used"]), "images used"), (number(about["images"]["left_out"]), "images left out")]
    tiles += [(number(about["objects"][name]), f"objects {name}") for name in reversed(DECISIONS)]
    return render(
        "pseudo_labels.html.jinja",
        title=f"{Path(about['predictions']).name}: pseudo-labels",
        about=about,
        tiles=tiles,
        chosen=_CHOSEN[about["gates"]["choose"]],
        counts=[
            (
                row["group"] or "all",
                row["class"],
                *(number(row[key]) for key in ("images", "kept", "ignored", "dropped", "labelled_images", "labelled")),
            )
            for row in about["counts"]
            if any(row[key] for key in (*DECISIONS, "labelled"))
        ],
        limit_names=["", *(_COLUMNS[key] for key in columns)],
        limits=[
            (" ".join(filter(None, (row.get("group"), row["class"]))), *(number(row.get(key)) for key in columns))
            for row in about["limits"]
        ],
        close_ups=[(title, text, pictures.close_ups(rows[:_SHOWN])) for title, text, rows in close_ups if rows],
        wholes=pictures.wholes(objects),
        left_out=list(left_out.items()),
    )


def _objects(dataset: CocoDataset) -> dict[str, list[dict[str, Any]]]:
    """Return decision -> rows of all such objects, each with the index of its `image`."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in DECISIONS}
    index_of = {record.image_id: index for index, record in enumerate(dataset.images)}
    for index in range(len(dataset)):
        for row in dataset.table.decode(index):
            found[row["decision"]].append({**row, "image": index})
    for row in dataset.further.get("dropped", []):
        found["dropped"].append({**row, "image": index_of[row["image_id"]]})
    return found


class _Pictures:
    """Draws from the images of a data set; unreadable ones are left out."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        self._names = {category.id: category.name for category in dataset.categories}
        self._read = image_reader(dataset, 8)

    def _item(self, index: int, drawn: np.ndarray, note: str) -> dict[str, str]:
        name = self.dataset.images[index].file_name.rsplit("/", 1)[-1]
        return {"url": jpeg_url(drawn), "alt": f"{name}: {note}", "name": name, "note": note}

    def close_ups(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """Return pictures of single objects, in yellow, with kept and ignored ones in blue."""
        items = []
        for row in rows:
            picture, record = self._read(row["image"]), self.dataset.images[row["image"]]
            if picture is None:
                continue
            own = row.get("segmentation") or box_to_rle(row["bbox"], record.height, record.width)
            box = rle_codec.bounding_boxes([own])[0]
            side = int(max(1.8 * (box[2:] - box[:2]).max(), _LEAST_WINDOW))
            window = window_around(box, side, record.height, record.width)
            masks = [(self.dataset.annotations(row["image"]).rles, _OTHERS, 1), ([own], _OBJECT, 2)]
            drawn = draw_close_up(picture, window, masks, side=_CLOSE_UP, background=128)
            numbers = [f"{key} {row[key]:.2f}" for key in ("score", "quality", "agreement") if key in row]
            note = ", ".join([self._names[row["category_id"]], *numbers])
            note += f"; not passed: {row['why']}" if row.get("why") else ""
            items.append(self._item(row["image"], drawn, note))
        return items

    def wholes(self, objects: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
        """Return whole images, those with the smallest fraction of sure objects first."""
        counts = np.zeros((len(self.dataset), len(DECISIONS)))
        for decision in (IGNORED, KEPT):
            for row in objects[DECISIONS[decision]]:
                counts[row["image"], decision] += 1
        shares = counts[:, KEPT] / np.maximum(counts.sum(axis=1), 1)
        items = []
        for index in np.argsort(shares, kind="stable")[:_IMAGES].tolist():
            picture = self._read(index)
            if picture is None:
                continue
            rles, classes, crowd = self.dataset.annotations(index)
            scale = _WHOLE / max(picture.shape[:2])
            drawn = draw_objects(resize_display(picture, scale), rles, object_colours(classes, crowd), scale)
            note = f"{counts[index, KEPT]:.0f} kept, {counts[index, IGNORED]:.0f} ignored"
            items.append(self._item(index, drawn, note))
        return items
