"""Augmentation at test time, around a segmenter whose answer is known and around Mask R-CNN."""

from __future__ import annotations

import numpy as np
import pytest
from brightness_segmenter import BrightnessSegmenter

from detseg.config import load_config
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.errors import ConfigError
from detseg.fusion.options import FusionOptions
from detseg.inference import detector
from detseg.inference.image_model import ImageModel
from detseg.inference.predictor import Predictor
from detseg.inference.tta import FUSE, MERGE_THEN_MASK, AugmentationOptions, TestTimeAugmentation
from detseg.inference.views import SYMMETRIES, parse_views
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions, soft_mask_windows

MODES = (MERGE_THEN_MASK, FUSE)  # of models that find boxes

SIZES = [(40, 64), (41, 64), (40, 63), (33, 47)]


def make_predictor(*views: str, mode: str = "fuse", fusion: dict | None = None, **options) -> Predictor:
    settings = TestTimeAugmentation(parse_views(views or ["none"]), mode, FusionOptions.from_dict(fusion or {}))
    of_model = {name: options.pop(name) for name in ("size",) if name in options}
    model = ImageModel(BrightnessSegmenter(), ImagePreprocess(num_channels=1), **of_model)
    return Predictor(model, ["cell"], tta=settings, **options)


def read_settings(*overrides: str) -> TestTimeAugmentation:
    return TestTimeAugmentation.from_options(AugmentationOptions.from_config(load_config(overrides=list(overrides))))


def blobs(height: int, width: int, seed: int = 0, count: int = 9) -> np.ndarray:
    """An image (H, W) uint8 of ellipses with soft borders."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.zeros((height, width))
    for _ in range(count):
        centre = random.uniform(0, [height, width])
        radii = random.uniform(2, 6, 2)
        distance = np.sqrt(((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2)
        image = np.maximum(image, np.clip((1.4 - distance) * 255, 0, 255))
    return image.astype(np.uint8)


def symmetric(height: int, width: int, name: str) -> np.ndarray:
    """`blobs` made equal to its own image under h, v or hv."""
    image = blobs(height, width)
    return np.maximum(image, SYMMETRIES[name].array(image))


def as_set(predictions: Predictions) -> dict[bytes, tuple]:
    """Run-lengths -> box and score."""
    return {
        rle["counts"]: (*box, score)
        for rle, box, score in zip(
            predictions.rles, predictions.boxes.tolist(), predictions.scores.tolist(), strict=True
        )
    }


def assert_same(one: Predictions, other: Predictions) -> None:
    first, second = as_set(one), as_set(other)
    assert set(first) == set(second), "the same run-lengths"
    for key, values in first.items():
        assert np.abs(np.array(values) - second[key]).max() < 0.5, "boxes within half a pixel"


@pytest.mark.parametrize("name", ["h", "v", "hv"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("min_size", [0, 56, 80])
def test_a_symmetric_image_gives_the_same_answer_from_every_flip(name, size, min_size):
    image = symmetric(*size, name)
    options = {"size": TestSizeOptions(min_size=min_size, max_size=1000)}
    plain = make_predictor(**options)(image)
    assert len(plain) >= 3
    assert_same(SYMMETRIES[name].predictions(plain), plain)
    assert_same(make_predictor(name, **options)(image), plain)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(SYMMETRIES))
@pytest.mark.parametrize(("size", "min_size"), [((40, 64), 0), ((41, 63), 0), ((33, 47), 50), ((40, 64), 80)])
def test_a_model_that_turns_with_the_image_gives_the_same_answer_from_every_view(mode, name, size, min_size):
    image = blobs(*size)
    options = {"size": TestSizeOptions(min_size=min_size, max_size=1000)}
    plain = make_predictor(**options)(image)
    turned = make_predictor(name, mode=mode, **options)(image)
    assert (turned.height, turned.width) == size
    assert_same(turned, plain)


@pytest.mark.parametrize("mode", MODES)
def test_all_views_together_give_what_each_gives(mode):
    image = blobs(44, 61)
    plain = make_predictor()(image)
    predictor = make_predictor("eight", mode=mode)
    together = predictor(image)
    assert_same(together, plain)
    assert together.provenance["tta"]["mode"] == mode
    assert len(together.provenance["tta"]["views"]) == 8
    assert together.soft_masks is None


def test_views_of_one_size_share_a_batch_and_network_sizes_are_those_of_the_view():
    predictor = make_predictor(
        "eight", "none+scale=2", "none+short=20", size=TestSizeOptions(min_size=40, max_size=100)
    )
    predictor(blobs(40, 50))
    assert [(len(batch), batch[0]) for batch in predictor.model.seen] == [
        (4, (40, 50, 1)),
        (4, (50, 40, 1)),
        (1, (80, 100, 1)),
        (1, (20, 25, 1)),
    ]


def test_soft_masks_are_the_mean_of_the_views():
    image = blobs(40, 50)
    views = ["none", "none+brightness=0.25"]
    answer = make_predictor(*views, mode="merge_then_mask", fusion={"method": "nms"})(image, soft_masks=True)
    single = [make_predictor(view)(image, boxes=answer, soft_masks=True).soft_masks for view in views]
    windows = soft_mask_windows(answer.boxes, 40, 50)
    assert len(answer) > 2
    for crop, rle, plain, brighter, (x0, y0, x1, y1) in zip(
        answer.soft_masks, answer.rles, *single, windows, strict=True
    ):
        assert np.abs(crop - (plain / 2 + brighter / 2)).max() <= 1, "each of them is rounded"
        mask = rle_codec.decode(rle).astype(bool)
        assert (mask[y0:y1, x0:x1] == (crop >= 128)).mean() > 0.99
        mask[y0:y1, x0:x1] = False
        assert not mask.any()


def test_features_that_are_not_kept_change_nothing(monkeypatch):
    image = blobs(40, 50)
    kept = make_predictor("flips", mode="merge_then_mask")(image)
    monkeypatch.setattr(detector, "PIXELS_KEPT", 0)
    monkeypatch.setattr(detector, "PIXELS_AT_ONCE", 0)
    predictor = make_predictor("flips", mode="merge_then_mask")
    assert as_set(predictor(image)) == as_set(kept)
    assert {len(batch) for batch in predictor.model.seen} == {1}


def test_given_boxes_get_the_masks_of_all_views():
    image = blobs(40, 50)
    boxes = np.array([[3.5, 4, 20, 17], [-4, 10, 12, 60], [9, 9, 9, 9]], np.float32)
    given = Predictions(5, "x", 40, 50, boxes, [0.3, 0.2, 0.1], [0, 0, 0])
    plain = make_predictor()(image, boxes=given)
    for mode in MODES:
        answer = make_predictor("eight", mode=mode)(image, boxes=given)
        assert answer.rles == plain.rles
        assert answer.scores.tolist() == given.scores.tolist()
        assert answer.boxes[0].tolist() == boxes[0].tolist()
        assert answer.boxes[1].tolist() == [0, 10, 12, 40]
        assert rle_codec.area(answer.rles)[2] == 0
    assert len(make_predictor("flips")(image, boxes=given.select(np.zeros(0, int)))) == 0


@pytest.mark.parametrize("mode", MODES)
def test_nothing_found_is_a_legal_answer(mode):
    answer = make_predictor("eight", mode=mode)(np.zeros((30, 40), np.uint8), soft_masks=True)
    assert len(answer) == 0
    assert answer.rles == []
    assert answer.file_name == ""


def test_the_best_objects_are_kept_up_to_the_limit():
    predictor = make_predictor("flips")
    all_of_them = predictor(blobs(40, 60))
    limited = Predictor(predictor.detector.models[0], ["cell"], tta=predictor.tta.replace(max_detections=2))
    assert limited(blobs(40, 60)).scores.tolist() == sorted(all_of_them.scores.tolist(), reverse=True)[:2]


def test_settings_come_from_the_configuration():
    assert read_settings().is_plain
    assert read_settings().fusion.method == "wbf", "predict --tta names views of its own"
    fuse = read_settings("TEST.AUG.MODE=fuse")
    assert fuse.fusion == TestTimeAugmentation().fusion, "one set of defaults"
    detectron2 = ["TEST.AUG.ENABLED=True", "TEST.AUG.MIN_SIZES=[300, 400]", "TEST.AUG.MAX_SIZE=500"]
    settings = read_settings(*detectron2)
    assert [view.name for view in settings.views] == ["none+short=300", "h+short=300", "none+short=400", "h+short=400"]
    assert settings.resolved(takes_boxes=True).mode == "merge_then_mask"
    assert settings.resolved(takes_boxes=False).mode == "fuse"
    assert settings.resolved(takes_boxes=False, gives_maps=True).mode == "average_maps"
    assert settings.max_detections == 100
    assert (settings.fusion.method, settings.fusion.threshold) == ("nms", 0.5), "as Detectron2 merges"
    assert read_settings(*detectron2, "MODEL.ROI_HEADS.NMS_THRESH_TEST=0.3").fusion.threshold == 0.3
    chosen = read_settings(*detectron2, "TEST.AUG.METHOD=wbf")
    assert (chosen.fusion.method, chosen.fusion.threshold) == ("wbf", 0.65)
    assert read_settings(*detectron2, "TEST.AUG.THRESHOLD=0.4").fusion.threshold == 0.4
    assert read_settings("TEST.AUG.ENABLED=True", "TEST.AUG.VIEWS=['flips']").fusion.method == "wbf"
    own = ["TEST.AUG.ENABLED=True", "TEST.AUG.VIEWS=['flips']", "TEST.AUG.METHOD=wbf", "TEST.AUG.MIN_VIEWS=2"]
    settings = read_settings(*own)
    assert [view.name for view in settings.views] == ["none", "h", "v", "hv"]
    assert (settings.fusion.method, settings.fusion.min_members) == ("wbf", 2)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["TEST.AUG.VIEWS=['flop']"], "TEST.AUG.VIEWS"),
        (["TEST.AUG.MIN_SIZES=[]"], "MIN_SIZES"),
        (["TEST.AUG.METHOD=soft_nms", "TEST.AUG.MODE=fuse"], "soft_nms"),
        (["TEST.AUG.MODE=merge_then_mask", "MODEL.MASK_ON=False"], "MODE"),
    ],
)
def test_settings_that_cannot_be_are_refused(words, named):
    with pytest.raises(ConfigError, match=named):
        read_settings("TEST.AUG.ENABLED=True", *words)


def test_boxes_cannot_be_merged_by_masks_that_are_not_there_yet():
    with pytest.raises(ConfigError, match="mask_iou"):
        TestTimeAugmentation(parse_views(["flips"]), "merge_then_mask", FusionOptions(overlap="mask_iou"))
    with pytest.raises(ConfigError, match="mask_iou"):
        make_predictor("flips", mode="auto", fusion={"overlap": "mask_iou"})
    with pytest.raises(ConfigError, match="merge_then_mask, fuse, average_maps"):
        TestTimeAugmentation(parse_views(["flips"]), mode="both")
