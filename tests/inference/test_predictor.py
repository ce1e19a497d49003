"""The predictor around a segmenter whose answer is known: sizes, types, batches, order, bad files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from brightness_segmenter import BrightnessSegmenter
from threshold_segmenter import ThresholdSegmenter

from detseg.coco.dataset import ImageRecord
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.errors import ConfigError, DataError
from detseg.fusion.postprocess import Postprocess
from detseg.inference.image_model import ImageModel
from detseg.inference.predictor import Predictor
from detseg.inference.tta import TestTimeAugmentation
from detseg.inference.views import parse_views
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions


def make_predictor(*, channels: int = 1, scaling: str = "none", **options) -> Predictor:
    preprocess = ImagePreprocess(num_channels=channels, scaling=scaling, scaling_range=(0.0, 65535.0))
    of_model = {name: options.pop(name) for name in ("size", "precision") if name in options}
    return Predictor(ImageModel(ThresholdSegmenter(), preprocess, **of_model), ["first", "second"], **options)


def squares(height: int = 40, width: int = 64, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W) with two bright rectangles, and their masks (2, H, W) in reading order."""
    masks = np.zeros((2, height, width), bool)
    masks[0, 4:12, 6:20] = masks[1, 20:33, 30:55] = True
    bright = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 255
    return (masks.any(axis=0) * bright).astype(dtype), masks


def masks_of(predictions) -> np.ndarray:
    return np.stack([rle_codec.decode(rle) for rle in predictions.rles])


def write_records(folder: Path, images: list[np.ndarray], *, sizes: bool = True) -> list[ImageRecord]:
    records = []
    for index, image in enumerate(images):
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), image)
        height, width = image.shape[:2] if sizes else (0, 0)
        records.append(ImageRecord(100 + index, path.name, path, height, width, {}))
    return records


@pytest.mark.parametrize("shape", ["gray", "gray with an axis", "RGB"])
def test_masks_come_back_exactly_whatever_the_channels(shape):
    image, masks = squares()
    given = {"gray": image, "gray with an axis": image[:, :, None], "RGB": np.repeat(image[:, :, None], 3, axis=2)}[
        shape
    ]
    predictor = make_predictor(channels=3)
    predictions = predictor(given)
    assert predictor.model.seen == [[((40, 64, 3), "uint8")]]
    assert np.array_equal(masks_of(predictions), masks)
    assert predictions.boxes.tolist() == [[6, 4, 20, 12], [30, 20, 55, 33]]
    assert (predictions.height, predictions.width) == (40, 64)


def test_sixteen_bit_and_float_images_are_scaled_as_in_training():
    image, masks = squares(dtype=np.uint16)
    for given in (image, (image.astype(np.float64))):
        predictor = make_predictor(scaling="fixed")
        assert np.array_equal(masks_of(predictor(given)), masks)
        assert predictor.model.seen == [[((40, 64, 1), "float32")]]


@pytest.mark.parametrize(
    ("min_size", "max_size", "seen"), [(80, 1000, (80, 128)), (80, 96, (60, 96)), (0, 0, (40, 64))]
)
def test_images_are_resized_for_the_model_and_answers_are_at_the_original_size(min_size, max_size, seen):
    image, masks = squares()
    predictor = make_predictor(size=TestSizeOptions(min_size=min_size, max_size=max_size))
    predictions = predictor(image)
    assert predictor.model.seen == [[((*seen, 1), "uint8")]]
    found = masks_of(predictions)
    if seen[0] % 40 == 0:
        assert np.array_equal(found, masks), "a whole factor and a threshold at half height give the same pixels"
    else:
        overlap = (found & masks).sum(axis=(1, 2)) / (found | masks).sum(axis=(1, 2))
        assert (overlap > 0.85).all()


def test_an_image_without_objects_and_a_postprocess_that_drops_all_are_fine():
    nothing = make_predictor()(np.zeros((30, 50), np.uint8))
    assert len(nothing) == 0
    assert nothing.rles == []
    image, _ = squares()
    assert len(make_predictor(postprocess=Postprocess(score_threshold=0.85))(image)) == 1
    assert len(make_predictor(postprocess=Postprocess(score_threshold=0.95))(image)) == 0


def test_a_file_gives_what_its_array_gives(tmp_path):
    image, masks = squares()
    cv2.imwrite(str(tmp_path / "cells.png"), image)
    predictions = make_predictor()(tmp_path / "cells.png")
    assert predictions.file_name == "cells.png"
    assert np.array_equal(masks_of(predictions), masks)


def test_records_keep_their_order_and_only_neighbours_of_one_size_share_a_batch(tmp_path):
    small, large = squares()[0], squares(48, 64)[0]
    records = write_records(tmp_path, [small, small, small, large, small, large, large])
    predictor = make_predictor()
    answers = list(predictor.predict_records(iter(records), batch_size=2))
    assert [answer.image_id for answer in answers] == [100, 101, 102, 103, 104, 105, 106]
    assert [answer.file_name for answer in answers] == [record.file_name for record in records]
    assert [len(batch) for batch in predictor.model.seen] == [2, 1, 1, 1, 2]
    alone = list(make_predictor().predict_records(records))
    assert [answer.rles for answer in alone] == [answer.rles for answer in answers]
    assert list(predictor.predict_records([])) == []


def test_records_are_streamed(tmp_path):
    records = write_records(tmp_path, [squares()[0]] * 4)
    predictor = make_predictor()
    answers = predictor.predict_records(records)
    next(answers)
    assert len(predictor.model.seen) == 1


def test_bad_images_raise_or_are_collected(tmp_path):
    image, _ = squares()
    records = write_records(tmp_path, [image, image, image, image])
    records[1].path.write_bytes(records[1].path.read_bytes()[:60])
    records[2] = ImageRecord(102, "gone.png", tmp_path / "gone.png", 40, 64, {})
    records[3] = ImageRecord(103, "3.png", records[3].path, 64, 40, {})
    with pytest.raises(DataError, match=r"1\.png"):
        list(make_predictor().predict_records(records))
    skipped = []
    answers = list(make_predictor().predict_records(records, batch_size=3, skipped=skipped))
    assert [answer.image_id for answer in answers] == [100]
    assert [image.file_name for image in skipped] == ["1.png", "gone.png", "3.png"]
    assert "gone.png" in skipped[1].reason
    assert "40 x 64" in skipped[2].reason
    assert "64 x 40" in skipped[2].reason


def test_sizes_that_are_not_known_are_not_checked(tmp_path):
    records = write_records(tmp_path, [squares()[0]], sizes=False)
    (answer,) = make_predictor().predict_records(records)
    assert (answer.height, answer.width) == (40, 64)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 5, 6, 7), np.uint8), np.zeros((0, 5), np.uint8), np.zeros((4, 5), np.int64), np.zeros(5)]
)
def test_arrays_that_are_no_images_are_refused(image):
    with pytest.raises(DataError, match="image"):
        make_predictor()(image)


def test_an_array_with_nan_is_blamed_and_not_the_weights():
    with pytest.raises(DataError, match="the image has values that are not finite"):
        make_predictor()(np.full((8, 8), np.nan))


def test_channels_that_the_model_does_not_take_are_refused(tmp_path):
    with pytest.raises(DataError, match="5 channels, but the model"):
        make_predictor(channels=3)(np.zeros((8, 8, 5), np.uint8))
    with pytest.raises(DataError, match=r"8 channels; an array is \(height, width, channels\), but the model"):
        make_predictor(channels=3)(np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(DataError, match="is a folder; expected an image"):
        make_predictor()(tmp_path)


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="float8"):
        make_predictor(precision="float8")
    with pytest.raises(ConfigError, match="other"):
        make_predictor(postprocess=Postprocess(classes=["other"], score_threshold={"other": 0.5}))
    with pytest.raises(ConfigError, match="batch size"):
        list(make_predictor().predict_records([], batch_size=0))


def test_provenance_says_who_predicted():
    predictions = make_predictor(provenance={"config_hash": "abc"})(squares()[0])
    assert predictions.provenance["config_hash"] == "abc"
    assert predictions.provenance["detseg_version"]


def test_what_a_model_cannot_do_is_refused_before_it_is_asked():
    image, _ = squares()
    predictor = make_predictor()
    with pytest.raises(ConfigError, match="--boxes"):
        predictor(image, boxes=Predictions.empty(1, "", *image.shape))
    with pytest.raises(ConfigError, match="--soft-masks"):
        next(predictor.predict_records([], soft_masks=True))
    with pytest.raises(ConfigError, match=r"rescoring\.yaml"):
        make_predictor(postprocess=Postprocess(mask_quality=1.0, source="rescoring.yaml"))(image)
    with pytest.raises(ConfigError, match="fuse"):
        make_predictor(tta=TestTimeAugmentation(parse_views(["flips"]), "merge_then_mask"))
    assert predictor.model.seen == []


def test_views_of_a_model_that_finds_no_boxes_first_are_fused():
    image, masks = squares()
    predictions = make_predictor(tta=TestTimeAugmentation(parse_views(["none", "hv"])))(image)
    assert predictions.provenance["tta"]["mode"] == "fuse"
    assert {tuple(mask.ravel()) for mask in masks_of(predictions)} == {tuple(mask.ravel()) for mask in masks}


def test_a_postprocess_on_probabilities_gets_them_without_keeping_them():
    image, _ = squares()
    model = ImageModel(BrightnessSegmenter(), ImagePreprocess(num_channels=1))
    rescored = Predictor(model, ["cell"], postprocess=Postprocess(mask_quality=1.0))(image)
    assert len(rescored) == 2
    assert rescored.soft_masks is None
