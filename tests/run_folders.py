"""Run folders as trainings leave them, made in an instant: real images, Predictions files, configurations, lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from detseg.coco.predictions_file import write_predictions
from detseg.config import dump_config, load_config
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec

SIDE, COUNT = 64, 12
CLASSES = ("round", "long <b>")


def disk(x: int, y: int, wide: int = 12, high: int = 12) -> dict:
    rows, columns = np.mgrid[:high, :wide]
    mask = ((rows - (high - 1) / 2) / (high / 2)) ** 2 + ((columns - (wide - 1) / 2) / (wide / 2)) ** 2 <= 1
    return rle_codec.encode_crop(mask, x, y, SIDE, SIDE)


def objects_of(image: int) -> list[tuple[dict, int]]:
    """Three objects an image, two classes; the last image has none."""
    if image == COUNT:
        return []
    rng = np.random.default_rng(image)
    places = rng.permutation([(2, 2), (40, 4), (6, 38), (40, 40)])[:3]
    return [(disk(*place, *((12, 12) if n % 2 == 0 else (22, 10))), n % 2) for n, place in enumerate(places.tolist())]


def make_data(folder: Path, name: str = "val.json", images: bool = True) -> Path:
    """Write a COCO file of `COUNT` images with the field `group`, and its images."""
    folder.mkdir(parents=True, exist_ok=True)
    records, annotations = [], []
    for image in range(1, COUNT + 1):
        picture = np.full((SIDE, SIDE), 60, dtype=np.uint8)
        for rle, category in objects_of(image):
            mask = rle_codec.decode(rle)
            picture[mask] = 180
            ys, xs = np.nonzero(mask)
            box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": category + 1, "bbox": box}
            annotations.append(
                {
                    **row,
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
        file_name = f"{image:03d}.png"
        if images:
            Image.fromarray(picture).save(folder / file_name)
        group = {"group": "bright" if image % 2 else "dark", "fold": image % 2}
        records.append({"id": image, "file_name": file_name, "height": SIDE, "width": SIDE, **group})
    categories = [{"id": number, "name": text} for number, text in enumerate(CLASSES, start=1)]
    path = folder / name
    path.write_text(json.dumps({"images": records, "annotations": annotations, "categories": categories}))
    return path


def predictions(quality: float = 1.0, seed: int = 0) -> list[Predictions]:
    """What a model finds: each object with the probability `quality`, a pixel beside it; now and then a false one."""
    rng = np.random.default_rng(seed)
    found = []
    for image in range(1, COUNT + 1):
        rles, classes, scores = [], [], []
        for rle, category in objects_of(image):
            if rng.random() < quality:
                crop, x, y = rle_codec.decode_crop(rle)
                rles.append(rle_codec.encode_crop(crop, min(x + 1, SIDE - crop.shape[1]), y, SIDE, SIDE))
                classes.append(category if rng.random() < 0.9 else 1 - category)
                scores.append(float(rng.uniform(0.5, 1)))
        if rng.random() < 0.4:
            rles.append(disk(26, 24, 10, 10))
            classes.append(0)
            scores.append(float(rng.uniform(0.1, 0.7)))
        boxes = rle_codec.bounding_boxes(rles).reshape(-1, 4)
        place = (image, f"{image:03d}.png", SIDE, SIDE)
        found.append(Predictions(*place, boxes=boxes, scores=scores, classes=classes, rles=rles))
    return found


def metric_lines(iterations: int, scale: float = 1.0) -> str:
    lines = []
    for iteration in range(10, iterations + 1, 10):
        part = scale / iteration
        losses = {"total_loss": 3 * part, "loss_cls": 2 * part, "loss_mask": part}
        pace = {"lr": 1e-3, "gradient_norm": 2.0, "seconds": 0.5, "data_seconds": 0.1, "eta_seconds": 1.0}
        lines.append({"iteration": iteration, "kind": "training", **losses, **pace})
        if iteration % 20 == 0:
            scores = {"object_ap": iteration / 200, "object_ap50": 0.5, "per_class": {}}
            lines.append({"iteration": iteration, "kind": "evaluation", **scores})
    return "".join(json.dumps(line) + "\n" for line in lines)


def make_run(
    folder: Path,
    data: Path | None,
    *,
    status: str = "finished",
    quality: float = 0.8,
    scored: bool = True,
    keys: Sequence[str] = (),
) -> Path:
    """Write a run folder. data: the test data, None without. scored: whether the final evaluation has taken place."""
    folder.mkdir(parents=True)
    own = [f"DATASETS.TRAIN=['{data}']", f"DATASETS.TEST=['{data}']"] if data is not None else ["TEST.EVAL_PERIOD", "0"]
    cfg = load_config(None, [*own, "SOLVER.MAX_ITER", "60", "MODEL.ROI_HEADS.NUM_CLASSES", "2", *keys])
    (folder / "config.yaml").write_text(dump_config(cfg))
    record = {"status": status, "started": "2026-01-02T03:04:05+0000", "seed": 7, "engine": "native"}
    record |= {"folder": "/nowhere"}
    record |= {"command": ["tools/train_net.py", "--config", "a b.yaml"], "git": {"commit": "abc123", "changed": True}}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "metrics.jsonl").write_text(metric_lines(60 if scored else 30))
    if scored and data is not None:
        write_scored(folder, data.stem, quality)
    return folder


def write_scored(folder: Path, name: str, quality: float) -> None:
    """Write what the final evaluation leaves."""
    categories = [{"id": number, "name": text} for number, text in enumerate(CLASSES, start=1)]
    (folder / "predictions").mkdir()
    write_predictions(folder / "predictions" / f"{name}.json.gz", predictions(quality), categories, {})
    scores = {"object_ap": 0.4, "coco_segm_ap": 0.123, "per_class": {CLASSES[0]: {"object_ap": 0.3}}}
    (folder / "final_metrics.json").write_text(json.dumps(scores))
    (folder / "postprocess.yaml").write_text("score_threshold: 0.3\n")
