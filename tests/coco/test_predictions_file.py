"""Predictions files: round trips, streams, other layouts, and hostile input."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from results_cases import result, write_json
from scoring_cases import predictions_of, random_case, rectangle, without_masks

from detseg.coco.predictions_file import PredictionsWriter, read_predictions, write_predictions
from detseg.errors import DataError
from detseg.structures import Predictions
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import soft_mask_window

CATEGORIES = [{"id": 3, "name": "round"}, {"id": 9, "name": "länglich"}]


def coco_truth(*images, names=("round", "länglich"), ids=(1, 2)):
    """What readers need of a CocoDataset."""
    return SimpleNamespace(
        images=[
            SimpleNamespace(image_id=i, file_name=f"{i}.png", height=h, width=w, metadata={}) for i, h, w in images
        ],
        categories=[SimpleNamespace(id=i, name=n) for i, n in zip(ids, names, strict=True)],
    )


def assert_same(first: Predictions, second: Predictions):
    assert (first.image_id, first.file_name) == (second.image_id, second.file_name)
    assert (first.height, first.width, first.provenance) == (second.height, second.width, second.provenance)
    for name in ("boxes", "scores", "classes", "quality"):
        left, right = getattr(first, name), getattr(second, name)
        assert left.dtype == right.dtype
        assert np.array_equal(left, right, equal_nan=name == "quality"), f"{name} changed"
    assert (first.rles is None) == (second.rles is None)
    assert first.rles is None or [decoded(r) for r in first.rles] == [decoded(r) for r in second.rles]
    assert (first.soft_masks is None) == (second.soft_masks is None)
    for left, right in zip(first.soft_masks or [], second.soft_masks or [], strict=True):
        assert np.array_equal(left, right)


def decoded(rle):
    counts = rle["counts"]
    return list(rle["size"]), counts if isinstance(counts, bytes) else counts.encode()


def test_image_level_fields_are_kept_and_nothing_else_becomes_one(tmp_path):
    fields = {"group": "shsy5y", "fold": 2, "sample": "A1", "dose": 0.5, "control": True}
    image = Predictions.empty(7, "a.png", 40, 50)
    image.metadata, image.provenance, image.pixel_size = dict(fields), {"fold": 1}, (0.5, 0.5)
    write_predictions(tmp_path / "p.json.gz", [image], CATEGORIES)
    (read,) = read_predictions(tmp_path / "p.json.gz")
    assert (read.metadata, read.provenance, read.pixel_size) == (fields, {"fold": 1}, (0.5, 0.5))
    assert list(read.metadata) == list(fields), "their order changes the bytes of a file that is written again"
    assert read.select(np.zeros(0, dtype=bool)).metadata == fields
    content = {"id": 1, "file_name": "a.png", "height": 4, "width": 5, "plane": {"z": 3}, "tags": ["x"], "none": None}
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"images": [{**content, "well": "B2"}], "annotations": [], "categories": CATEGORIES}))
    (other,) = read_predictions(path)
    assert other.metadata == {"well": "B2"}


def with_soft_masks(predictions: Predictions, seed: int = 0) -> Predictions:
    random = np.random.default_rng(seed)
    predictions.boxes = predictions.boxes + random.uniform(-0.9, 0.9, predictions.boxes.shape).astype(np.float32)
    predictions.soft_masks = []
    for box in predictions.boxes:
        x0, y0, x1, y1 = soft_mask_window(box, predictions.height, predictions.width)
        predictions.soft_masks.append(random.integers(0, 256, (y1 - y0, x1 - x0), dtype=np.uint8))
    return predictions


@pytest.mark.parametrize("name", ["p.json", "p.json.gz"])
def test_round_trip(tmp_path, name):
    _, predictions = random_case(0, images=5)
    predictions[1].provenance = {"checkpoint": "abc", "flips": [0, 1]}
    predictions.append(predictions_of([], image_id="a text id"))
    random = np.random.default_rng(0)
    for image in predictions:
        image.boxes = image.boxes + random.uniform(-1, 1, image.boxes.shape).astype(np.float32)
        image.scores = random.random(len(image)).astype(np.float32)
    path = tmp_path / name
    write_predictions(path, predictions, CATEGORIES, {"engine": "native"})
    file = read_predictions(path)
    assert len(file) == 6
    assert file.info["engine"] == "native"
    assert file.categories == CATEGORIES
    assert file.class_names == ["round", "länglich"]
    for _ in range(2):
        for before, after in zip(predictions, file, strict=True):
            assert_same(before, after)
    assert list(tmp_path.iterdir()) == [path], "a temporary file was left"
    if name.endswith(".gz"):
        assert path.read_bytes()[:2] == b"\x1f\x8b"


def test_quality_stands_beside_the_score_where_it_is_known(tmp_path):
    masks = [rectangle(0, 0, 9, 9), rectangle(5, 5, 30, 20), rectangle(2, 2, 4, 4)]
    judged = predictions_of(masks, scores=[0.9, 0.8, 0.3]).with_quality(np.float32([0.71, np.nan, 1 / 3]))
    plain = predictions_of(masks, image_id=2)
    write_predictions(tmp_path / "p.json.gz", [judged, plain], ["cell"])
    for before, after in zip([judged, plain], read_predictions(tmp_path / "p.json.gz"), strict=True):
        assert_same(before, after)
    with gzip.open(tmp_path / "p.json.gz", "rt") as file:
        results = json.load(file)["annotations"]
    assert ["quality" in one for one in results] == [True, False, True, False, False, False]
    assert results[0]["quality"] == 0.71
    assert results[0]["score"] == pytest.approx(0.9 * 0.71)


def test_soft_masks_and_boxes_alone(tmp_path):
    soft = with_soft_masks(predictions_of([rectangle(0, 0, 9, 9), rectangle(5, 5, 30, 20)]))
    boxes = without_masks(predictions_of([rectangle(1, 1, 4, 4)], image_id=2))
    write_predictions(tmp_path / "p.json.gz", [soft, boxes], ["cell"])
    first, second = read_predictions(tmp_path / "p.json.gz")
    assert_same(soft, first)
    assert_same(boxes, second)


def test_the_same_predictions_give_the_same_bytes(tmp_path):
    _, predictions = random_case(0)
    for name in ("a.json.gz", "b.json.gz"):
        write_predictions(tmp_path / name, predictions, CATEGORIES)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


@pytest.mark.parametrize("images", [0, 1, 3])
def test_files_without_predictions(tmp_path, images):
    empty = [predictions_of([], image_id=number) for number in range(images)]
    write_predictions(tmp_path / "p.json", empty, ["cell"])
    assert [len(image) for image in read_predictions(tmp_path / "p.json")] == [0] * images
    json.loads((tmp_path / "p.json").read_text())


def test_it_is_a_coco_data_set_and_its_annotations_are_results(tmp_path):
    _, predictions = random_case(2)
    path = tmp_path / "p.json"
    write_predictions(path, predictions, CATEGORIES)
    data = COCO(str(path))
    assert len(data.getImgIds()) == len(predictions)
    assert len(data.getAnnIds()) == sum(map(len, predictions))
    first = next(iter(data.anns.values()))
    assert first["id"] == 1
    assert first["category_id"] in (3, 9)
    assert first["area"] == rle_codec.area([first["segmentation"]])[0]
    assert data.loadRes(data.dataset["annotations"]).getAnnIds() == data.getAnnIds()


def test_one_line_an_image(tmp_path):
    _, predictions = random_case(2, images=4)
    path = tmp_path / "p.json"
    write_predictions(path, predictions, CATEGORIES)
    lines = path.read_text(encoding="utf-8").splitlines()
    filled = [image for image in predictions if len(image)]
    assert [json.loads(f"[{line.rstrip(',')}]")[0]["image_id"] for line in lines[1 : 1 + len(filled)]] == [
        image.image_id for image in filled
    ]


def test_nothing_appears_when_writing_fails(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("old")
    good, bad = (predictions_of([rectangle(0, 0, 5, 5)], image_id=name) for name in "ab")
    bad.rles[0]["counts"] = None

    with pytest.raises(DataError):
        write_predictions(path, [good, bad], ["cell"])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_writer_refuses(tmp_path):
    image = predictions_of([rectangle(0, 0, 5, 5)])
    with PredictionsWriter(tmp_path / "p.json", ["cell"]) as writer:
        writer.write(image)
        with pytest.raises(DataError, match="written before"):
            writer.write(image)
        with pytest.raises(DataError, match="class 1 of 1"):
            writer.write(predictions_of([rectangle(0, 0, 5, 5)], classes=[1], image_id=2))
    with pytest.raises(DataError, match="not open"):
        PredictionsWriter(tmp_path / "q.json", ["cell"]).write(image)
    with (
        pytest.raises(DataError, match="not finite"),
        PredictionsWriter(tmp_path / "r.json", ["cell"]) as writer,
    ):
        writer.write(predictions_of([rectangle(0, 0, 5, 5)], scores=[np.nan]))
    (tmp_path / "q").touch()
    with (
        pytest.raises(DataError, match="folder"),
        PredictionsWriter(tmp_path / "q" / "p.json", ["cell"]),
    ):
        pass


def test_a_plain_list_of_results(tmp_path):
    path = write_json(tmp_path / "r.json", [result(image_id=7), result(image_id=4, category_id=2), result(image_id=7)])
    file = read_predictions(path)
    assert [(image.image_id, len(image)) for image in file] == [(7, 2), (4, 1)]
    assert file.categories == [{"id": 1, "name": "1"}, {"id": 2, "name": "2"}]
    truth = coco_truth((4, 40, 50), (7, 40, 50), (8, 40, 50))
    images = list(read_predictions(path, truth))
    assert [(image.image_id, len(image), image.file_name) for image in images] == [
        (4, 1, "4.png"),
        (7, 2, "7.png"),
        (8, 0, "8.png"),
    ]
    assert images[0].classes.tolist() == [1]


def test_results_that_detectron2_and_others_write(tmp_path):
    counts = [0, 5, 35, 5, 35, 5, 35, 5, 35, 5, 1835]  # columns of 40 pixels
    path = write_json(
        tmp_path / "r.json",
        [result(bbox=...), result(bbox=[], segmentation={"size": [40, 50], "counts": counts}), result(score=1)],
    )
    image = next(iter(read_predictions(path)))
    assert image.boxes.tolist() == [[0, 0, 5, 5]] * 3
    assert [decoded(rle)[1] for rle in image.rles] == [rectangle(0, 0, 5, 5)["counts"]] * 3


def test_boxes_alone_need_the_size_of_their_image(tmp_path):
    path = write_json(tmp_path / "r.json", [result(segmentation=...)])
    with pytest.raises(DataError, match="the size of image 1 is unknown"):
        read_predictions(path)
    image = next(iter(read_predictions(path, coco_truth((1, 40, 50)))))
    assert image.rles is None
    assert (image.height, image.width) == (40, 50)


def test_an_empty_list(tmp_path):
    path = write_json(tmp_path / "r.json", [])
    assert list(read_predictions(path)) == []
    assert [len(image) for image in read_predictions(path, coco_truth((1, 40, 50)))] == [0]


def test_indented_json_is_read_as_well(tmp_path):
    _, predictions = random_case(2)
    write_predictions(tmp_path / "p.json", predictions, CATEGORIES)
    content = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    (tmp_path / "q.json").write_bytes(gzip.compress(json.dumps(content, indent=1).encode()))
    for before, after in zip(predictions, read_predictions(tmp_path / "q.json"), strict=True):
        assert_same(before, after)


def test_classes_are_mapped_by_name(tmp_path):
    predictions = predictions_of([rectangle(0, 0, 5, 5)] * 2, classes=[0, 1])
    write_predictions(tmp_path / "p.json", [predictions], CATEGORIES)
    file = read_predictions(tmp_path / "p.json", coco_truth((1, 40, 50), names=("länglich", "round"), ids=(5, 6)))
    assert next(iter(file)).classes.tolist() == [1, 0]
    assert file.categories == [{"id": 5, "name": "länglich"}, {"id": 6, "name": "round"}]
    with pytest.raises(DataError, match=r"'länglich'.*has: round"):
        read_predictions(tmp_path / "p.json", coco_truth((1, 40, 50), names=("round",), ids=(1,)))


def test_predictions_of_other_images_are_refused(tmp_path):
    write_predictions(tmp_path / "p.json", [predictions_of([rectangle(0, 0, 5, 5)])], ["round"])
    with pytest.raises(DataError, match=r"not in the ground truth, which has 2\.png:\n.*no image 1\.png"):
        read_predictions(tmp_path / "p.json", coco_truth((2, 40, 50)))
    with pytest.raises(DataError, match="41 x 50"):
        list(read_predictions(tmp_path / "p.json", coco_truth((1, 41, 50))))
    path = write_json(tmp_path / "r.json", [result(image_id=5)])
    with pytest.raises(DataError, match="image id 5 is unknown"):
        read_predictions(path, coco_truth((1, 40, 50)))
