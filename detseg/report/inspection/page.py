"""The report of a data set as a folder: index.html for readers, report.json for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detseg.coco.dataset import CocoDataset
from detseg.curation.repair.masks import pieces_of
from detseg.errors import DataError
from detseg.files.atomic import check_free, write_output
from detseg.formats.plausibility import check_separable
from detseg.report.drawing import (
    draw_close_up,
    draw_objects,
    image_reader,
    object_colours,
    resize_display,
    window_around,
)
from detseg.report.html import COLOURS, jpeg_url, number, render, share, svg
from detseg.report.inspection.figures import FIGURES, Report, groups_of, has_groups, kinds_of, label_of
from detseg.structures import rle as rle_codec

PAGE, NUMBERS = "index.html", "report.json"
# Pictures per kind of problem, and groups with an example.
_SHOWN, _EXAMPLES = 6, 6
# Sides in pixels: of a close-up, of the minimum part of the image in it, and of an example.
CLOSE_UP, LEAST_WINDOW, EXAMPLE = 220, 32, 460
FOUND, OTHERS, DEFECT = (255, 176, 0), (64, 190, 255), (235, 30, 60)
# For a small defect of a large object only this many times the length of the defect, or this many pixels, are shown.
DETAIL, LEAST_DETAIL = 6, 96


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise DataError if the report would replace a file, unless `overwrite`."""
    check_free(folder / PAGE, folder / NUMBERS, overwrite=overwrite)


def write_report(
    folder: Path, report: Mapping[str, Any], dataset: CocoDataset, config: str, *, overwrite: bool = False
) -> Path:
    """Write the page and the numbers; return the path of the page.

    report: from curation/inspection/inspect_data.py. dataset: the images that its indices refer to. config: the
    suggested YAML. Raises DataError if a file exists, unless `overwrite`, or cannot be written.
    """
    check_folder(folder, overwrite=overwrite)
    contents = {PAGE: whole_page(report, dataset, config), NUMBERS: json.dumps(report, indent=1) + "\n"}
    for name, content in contents.items():
        write_output(folder / name, content, "the report")
    return folder / PAGE


def whole_page(report: Report, dataset: CocoDataset, config: str) -> str:
    """Return the page. dataset: for pictures. config: the suggested configuration as text."""
    names = ", ".join(file["name"] for file in report["files"])
    pictures = _Pictures(report, dataset)
    wrong, by_group = report["problems"], report["images"]["by_group"]
    return render(
        "inspection.html.jinja",
        title=f"{names}: data report",
        names=names,
        report=report,
        config=config,
        groups=[(group, label_of(group), by_group[group]) for group in groups_of(report)],
        kinds=[(name, one) for name, one in kinds_of(report) if one["objects"]],
        colours=COLOURS,
        most_images=max(row["images"] for row in by_group.values()),
        most_objects=max(*(sum(row["objects"].values()) for row in by_group.values()), 1),
        most_masks=max((one["objects"] for one in wrong["masks"].values()), default=1),
        figure=lambda name: svg(FIGURES[name], report, label=name.replace("_", " ")),
        tiles=_tiles(report),
        examples=pictures.examples(),
        close_ups=[
            {"title": one["title"], "images": one["images"], "has_masks": "objects" in one, "pictures": shown}
            for one in (*wrong["masks"].values(), *wrong["pictures"].values())
            if (shown := pictures.worst_of(one)) or "objects" not in one
        ],
        similar=pictures.similar(),
    )


def _tiles(report: Report) -> list[tuple[str, str]]:
    """Return the large numbers at the top, with their captions."""
    objects, images, wrong = report["objects"], report["images"], report["problems"]
    counts = [row["objects"] for row in images["rows"]]
    tiles = [
        (number(images["count"]), "images"),
        (number(objects["count"]), "objects"),
        (f"{min(counts)} to {max(counts)}", f"objects per image, median {np.median(counts):.0f}"),
    ]
    if objects["diameter"]:
        tiles.append((f"{objects['diameter']['median']:.0f} px", "median diameter of an object"))
        if objects["diameter_um"]:
            tiles.append((f"{number(objects['diameter_um']['median'])} µm", "the same in micrometres"))
        tiles.append((share(objects["touching"]), "objects that touch or overlap others"))
    repairs = sum(one["objects"] for one in wrong["masks"].values() if one["remedy"] == "detseg repair")
    tiles.append((number(repairs), "findings that repair would fix"))
    if len(report["files"]) > 1:
        tiles.append((number(wrong["similar"]["leaks"]), "leaks between the files"))
    return tiles


class _Pictures:
    """Draws from the images of a data set; unreadable ones are left out."""

    def __init__(self, report: Report, dataset: CocoDataset) -> None:
        self.report, self.dataset = report, dataset
        self.rows = report["images"]["rows"]
        # Problems and examples of one image are consecutive.
        self._read = image_reader(dataset, 2)

    def examples(self) -> list[dict[str, str]]:
        """Return the image of each group with the median number of objects, without and with contours."""
        items = []
        several = has_groups(self.report)
        for group in groups_of(self.report)[:_EXAMPLES]:
            own = [index for index, row in enumerate(self.rows) if row["group"] == group and "median" in row]
            own.sort(key=lambda index: (self.rows[index]["objects"], index))
            chosen = own[len(own) // 2 :][:1] if several else own[:: max(len(own) // 3, 1)][:3]
            for index in chosen:
                prefix = f"{label_of(group)}: " if several else ""
                items += self._item(index, self._whole(index), "", prefix)
                note = f"{self.rows[index]['objects']} objects"
                items += self._item(index, self._whole(index, with_masks=True), note, prefix)
        return items

    def worst_of(self, finding: Mapping[str, Any]) -> list[dict[str, str]]:
        """Return pictures of the worst cases of a problem, of masks or of images."""
        items = []
        for worst in finding["worst"][:_SHOWN]:
            index = worst["image"]
            picture = self._close_up(worst) if "number" in worst else self._whole(index)
            items += self._item(index, picture, worst["note"])
        return items

    def similar(self) -> list[dict[str, str]]:
        """Return pictures of near-duplicates, those of a pair consecutively."""
        items = []
        for pair in self.report["problems"]["similar"]["worst"][:_SHOWN]:
            note = f"{pair['similarity']:.3f}{', turned' if pair['turned'] else ''}"
            for index in (pair["first"], pair["second"]):
                file = self.report["files"][self.rows[index]["file"]]["name"]
                items += self._item(index, self._whole(index), note + (f", leak: {file}" if pair["leak"] else ""))
        return items

    def _item(self, index: int, picture: np.ndarray | None, note: str, prefix: str = "") -> list[dict[str, str]]:
        if picture is None:
            return []
        name = self.rows[index]["file_name"].rsplit("/", 1)[-1]
        name = name if len(name) <= 22 else f"{name[:10]}...{name[-9:]}"
        return [{"url": jpeg_url(picture, 86), "name": prefix + name, "note": note}]

    def _whole(self, index: int, *, with_masks: bool = False) -> np.ndarray | None:
        """Return an image, its longer side `EXAMPLE`, with or without the contours of its objects."""
        picture = self._read(index)
        if picture is None:
            return None
        scale = EXAMPLE / max(picture.shape[:2])
        shown = resize_display(picture, scale)
        if not with_masks:
            return shown
        own, classes, crowd = self.dataset.annotations(index).objects
        try:
            check_separable(own, self.dataset.images[index].file_name)
        except DataError:
            return shown  # scattered pixels have no useful contours
        return draw_objects(shown, own, object_colours(classes, crowd), scale)

    def _close_up(self, worst: Mapping[str, Any]) -> np.ndarray | None:
        """Return an object in yellow with its neighbours in blue, and the defective pixels in red.

        It is shown completely, or only around the defective pixels if these are much smaller.
        """
        picture = self._read(worst["image"])
        if picture is None:
            return None
        record = self.dataset.images[worst["image"]]
        rles, _ = self.dataset.table.rles(worst["image"], record.height, record.width)
        found, defect = rles[worst["number"]], worst.get("defect")
        boxes = rle_codec.bounding_boxes([found, _largest_piece(defect) if defect else found]).astype(np.float64)
        whole, detail = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        side = int(min(max(1.5 * whole, 1.5 * detail, LEAST_WINDOW), max(DETAIL * detail, LEAST_DETAIL)))
        # An object that fits is centred.
        window = window_around(boxes[0 if side >= whole else 1], side, record.height, record.width)
        others = [rle for index, rle in enumerate(rles) if index != worst["number"]]
        masks = [(others, OTHERS, 1), ([found], FOUND, 2)]
        return draw_close_up(picture, window, masks, side=CLOSE_UP, painted=defect, paint=DEFECT, background=128)


def _largest_piece(rle: Mapping[str, Any]) -> dict[str, Any]:
    """Return the largest 8-connected component of a mask, on which to centre."""
    mask, x0, y0 = rle_codec.decode_crop(rle)
    return rle_codec.encode_crop(pieces_of(mask)[0], x0, y0, *rle["size"])
