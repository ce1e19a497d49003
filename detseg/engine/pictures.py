"""Pictures and tables of an evaluation for the trackers: the same images every time, tables at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from detseg.evaluation.evaluate import align
from detseg.evaluation.ground_truth import GroundTruth
from detseg.evaluation.matches import match_image
from detseg.report.drawing import to_display
from detseg.report.overlays import overlay_names, side_by_side
from detseg.report.tables import (
    class_mask,
    confusion_rows,
    image_rows,
    named_rows,
    precision_recall_rows,
    threshold_rows,
)
from detseg.runs.tracker import ClassMasks, Picture, Table
from detseg.structures import Predictions

if TYPE_CHECKING:
    from detseg.coco.dataset import CocoDataset
    from detseg.fusion.postprocess import Postprocess

_MOST_CLASSES = 254  # in a class mask of one byte


def draw_pictures(
    dataset: CocoDataset,
    truth: GroundTruth,
    predictions: Sequence[Predictions],
    postprocess: Postprocess,
    indices: Sequence[int],
    name: str,
) -> dict[str, Picture]:
    """Draw images of a data set: truth beside prediction and errors (`pictures/NAME/...`), class masks (`masks/...`).

    truth, predictions: of the same images in the same order. indices: of the images to draw.
    """
    names = overlay_names(dataset.images)
    pictures: dict[str, Picture] = {}
    for index in indices:
        record, annotations = dataset.images[index], dataset.annotations(index)
        shown = postprocess.apply(predictions[index])
        image = dataset.read_image(index)
        matches = None if shown.rles is None else match_image(truth.images[index], shown)
        sides = {"truth": annotations, "predictions": shown, "matches": matches}
        stem = names[index].removesuffix(".png")
        picture = side_by_side(image, **sides, class_names=dataset.class_names, caption=record.file_name)
        pictures[f"pictures/{name}/{stem}"] = picture
        if shown.rles is not None and len(dataset.class_names) <= _MOST_CLASSES:
            masks = {
                "prediction": class_mask(shown.rles, shown.classes, shown.height, shown.width),
                "truth": class_mask(annotations.rles, annotations.classes, shown.height, shown.width),
            }
            pictures[f"masks/{name}/{stem}"] = ClassMasks(to_display(image), masks, dataset.class_names)
    return pictures


def evaluation_tables(
    dataset: CocoDataset,
    truth: GroundTruth,
    predictions: Sequence[Predictions],
    postprocess: Postprocess,
    metrics: Mapping[str, Any],
    name: str,
    pictures: int,
) -> dict[str, Table]:
    """Return the tables of a final evaluation, `tables/NAME/...`, with pictures of the `pictures` worst images."""
    tables = {
        "classes": Table.of(named_rows(metrics, "per_class")),
        "groups": Table.of(named_rows(metrics, "per_group")),
    }
    predictions = align(truth, predictions)
    if all(image.rles is not None for image in predictions):
        rows = image_rows(truth, predictions, postprocess)
        number_of = {image.image_id: index for index, image in enumerate(truth.images)}
        worst = [number_of[row["image_id"]] for row in rows[:pictures]]
        drawn = draw_pictures(dataset, truth, predictions, postprocess, worst, name)
        shown = [picture for key, picture in drawn.items() if key.startswith("pictures/")]
        tables["images"] = Table.of([{**row, "picture": None} for row in rows])
        for row, picture in zip(tables["images"].rows, shown, strict=False):
            row[-1] = picture
        arguments = truth, predictions, postprocess
        tables["precision_recall"] = Table.of(precision_recall_rows(*arguments), lines=("recall", "precision", "class"))
        tables["thresholds"] = Table.of(threshold_rows(*arguments), lines=("threshold", "object_ap", "class"))
        tables["confusion"] = Table.of(confusion_rows(*arguments), confusion=("true", "predicted", "number"))
    return {f"tables/{name}/{what}": table for what, table in tables.items() if table.rows}
