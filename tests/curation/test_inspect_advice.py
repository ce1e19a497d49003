"""What inspect_data suggests, on data whose right answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detseg.coco.dataset import CocoDataset, ImageRecord
from detseg.coco.records import AnnotationTable, Category
from detseg.curation.inspection.advice import (
    advise_balance,
    advise_intensities,
    advise_split,
    appearance_of,
    class_weights,
    percent,
    round_up,
)
from detseg.curation.inspection.advise_detector import advise_anchors, advise_limits, advise_masks, advise_pretrained
from detseg.curation.inspection.advise_scale import Crops, choose_crop, choose_scale, scaled, wanted_factor
from detseg.curation.inspection.gather import Measurements
from detseg.curation.inspection.measure import OBJECT, IntensityStatistics
from detseg.curation.leaks import SimilarPair
from detseg.curation.repair.rules import RepairRules


def measured(
    sizes: list[tuple[int, int]],
    boxes: list[list[list[float]]],
    metadata: list[dict[str, Any]] | None = None,
    classes: list[list[int]] | None = None,
    names: tuple[str, ...] = ("cell",),
    groups: list[str] | None = None,
    pictures: dict[int, IntensityStatistics] | None = None,
) -> Measurements:
    """A data set of images (height, width) with boxes (XYXY) for objects, as if it had been measured."""
    metadata = metadata or [{} for _ in sizes]
    images = [
        ImageRecord(n, f"{n}.png", Path(f"{n}.png"), *size, facts)
        for n, (size, facts) in enumerate(zip(sizes, metadata, strict=True))
    ]
    owner = np.repeat(np.arange(len(sizes)), [len(own) for own in boxes])
    table = np.array([box for own in boxes for box in own], dtype=np.float32).reshape(-1, 4)
    kinds = np.array([c for own in (classes or [[0] * len(own) for own in boxes]) for c in own], dtype=np.int64)
    count = len(owner)
    nothing = np.zeros(count, dtype=np.int64)
    places = AnnotationTable(
        text=np.zeros(0, dtype=np.uint8),
        starts=nothing,
        ends=nothing,
        classes=kinds.astype(np.int32),
        crowd=np.zeros(count, dtype=bool),
        pixels=np.full(count, 2, dtype=np.uint8),
        offsets=np.concatenate([[0], np.cumsum([len(own) for own in boxes])]).astype(np.int64),
    )
    objects = np.zeros(count, dtype=OBJECT).view(np.recarray)
    objects.image, objects.class_index, objects.box, objects.elongation = owner, kinds, table, 1
    objects.area = (table[:, 2] - table[:, 0]) * (table[:, 3] - table[:, 1])
    return Measurements(
        files=["made.json"],
        dataset=CocoDataset(images, [Category(n + 1, name) for n, name in enumerate(names)], places, "made.json"),
        group_field="group" if groups else "",
        groups=groups or [""] * len(sizes),
        objects=objects,
        crowd=np.zeros(len(sizes), dtype=np.int64),
        changes=[],
        intensities=pictures or {},
        fidelity=np.zeros((0, 4)),
        chosen=np.arange(len(sizes)),
        unreadable={},
        missing=[],
        similar=[],
        skipped=[],
        label_warnings=[],
        one_class_hint=None,
        rules=RepairRules(),
    )


def squares(side: float, count: int, height: int, width: int, seed: int = 0) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, width - side, count), rng.uniform(0, height - side, count)
    return np.stack([x, y, x + side, y + side], axis=1).tolist()


def picture(**changes: Any) -> IntensityStatistics:
    values = {"dtype": "uint8", "channels": 1, "low": 5, "median": 20, "high": 240, "mean": 40, "std": 30}
    values |= {"saturated": 0, "objects": 150, "background": 20, "noise": 4, "focus": 100, "colour": 0, "purple": 0}
    return IntensityStatistics(**(values | changes))


@pytest.mark.parametrize(
    ("side", "factor"), [(14, 2.0), (28, 1.0), (26, 1.0), (60, 1.0), (4, 3.0), (224, 0.25), (0.5, 3.0)]
)
def test_small_objects_are_enlarged_and_huge_ones_reduced(side: float, factor: float) -> None:
    assert wanted_factor(np.full(20, side)) == pytest.approx(factor)


def test_huge_objects_are_not_reduced_at_the_cost_of_small_ones() -> None:
    assert wanted_factor(np.array([20.0] * 2 + [300.0] * 8)) == pytest.approx(0.7)  # 14 pixels are left of 20
    assert wanted_factor(np.array([10.0] * 2 + [300.0] * 8)) == 1
    assert wanted_factor(np.zeros(0)) == 1


def test_images_of_one_size_get_a_shorter_edge() -> None:
    data = measured([(520, 704)] * 4, [squares(14, 30, 520, 704, n) for n in range(4)])
    scale, advice = choose_scale(data)
    assert (scale.min_size, scale.pixel_size) == (1040, 0)
    assert advice.keys["INPUT.MIN_SIZE_TRAIN"] == [1040]
    assert advice.keys["INPUT.MIN_SIZE_TEST"] == 1040
    assert np.median(scale.sides) == pytest.approx(28, rel=0.01)
    assert scale.sizes[0].tolist() == [1040, 1408]
    assert "14 pixels" in advice.reason
    assert "28 at network scale" in advice.reason


def test_images_whose_objects_grow_with_them_get_a_shorter_edge() -> None:
    sizes = [(256, 256), (512, 512), (1024, 1024)] * 3
    data = measured(sizes, [squares(side / 10, 20, side, side, n) for n, (side, _) in enumerate(sizes)])
    scale, advice = choose_scale(data)
    assert scale.min_size
    assert scale.spreads["min_size"] < 0.05 < scale.spreads["own"]
    assert scale.sides.std() < 1
    assert "with one shorter edge" in advice.reason


def test_images_of_any_size_with_objects_of_one_size_keep_theirs() -> None:
    sizes = [(256, 256), (512, 512), (1024, 1024)] * 3
    data = measured(sizes, [squares(14, 20, side, side, n) for n, (side, _) in enumerate(sizes)])
    scale, advice = choose_scale(data)
    assert (scale.min_size, scale.pixel_size, scale.factor) == (0, 0, 1)
    assert "A factor of 2 would suit" in advice.reason


def test_pixel_sizes_that_explain_the_sizes_are_used() -> None:
    micrometres = [0.25, 0.5, 1.0] * 3
    sizes = [(512, 512)] * 9
    boxes = [squares(16 / um, 20, 512, 512, n) for n, um in enumerate(micrometres)]
    data = measured(sizes, boxes, [{"pixel_size": um} for um in micrometres])
    scale, advice = choose_scale(data)
    assert scale.pixel_size == pytest.approx(0.5)
    assert not scale.min_size
    assert advice.keys["INPUT.PIXEL_SIZE"] == 0.5
    assert advice.keys["INPUT.MIN_SIZE_TRAIN"] == [0]
    assert scale.sides.std() < 1
    # One image without a pixel size would stop a training.
    data = measured(sizes, boxes, [{}, *({"pixel_size": um} for um in micrometres[1:])])
    assert choose_scale(data)[0].pixel_size == 0


def test_objects_that_differ_from_image_to_image_whatever_its_size_decide_themselves() -> None:
    sides = [8, 16, 32, 64] * 3
    sizes = [(256, 256), (512, 300)] * 6
    data = measured(
        sizes, [squares(side, 20, *size, n) for n, (side, size) in enumerate(zip(sides, sizes, strict=True))]
    )
    scale, advice = choose_scale(data)
    assert (scale.object_size, scale.min_size, scale.pixel_size) == (32, 0, 0)
    assert advice.keys["INPUT.OBJECT_SIZE"] == 32
    assert advice.keys["INPUT.MIN_SIZE_TRAIN"] == [0]
    assert scale.sides == pytest.approx(32, rel=0.05)
    assert scale.sizes[0] == pytest.approx(1024, rel=0.05)


def test_enlarging_stops_at_a_size_that_fits_into_memory() -> None:
    data = measured([(2000, 2000)], [squares(10, 50, 2000, 2000)])
    assert choose_scale(data)[0].sizes.max() <= 2000


def test_crops_hold_the_objects_and_empty_ones_are_told() -> None:
    data = measured([(2000, 2000)] * 4, [squares(40, 3, 2000, 2000, n) for n in range(4)])
    crops, advice = choose_crop(data, scaled(data, 0))
    assert crops.size == 320
    assert advice.keys["INPUT.CROP.SIZE"] == [320, 320]
    assert crops.empty > 0.7
    assert advice.keys["INPUT.CROP.ON_OBJECTS"] == 0.5
    assert advice.keys["INPUT.CROP.TYPE"] == "absolute"


def test_small_images_are_shown_whole() -> None:
    data = measured([(256, 256)] * 2, [squares(30, 20, 256, 256)] * 2)
    crops, advice = choose_crop(data, scaled(data, 0))
    assert crops.size == 0
    assert advice.keys == {"INPUT.CROP.ENABLED": False, "INPUT.CROP.ON_OBJECTS": 0.0}
    assert crops.counts.tolist() == [20, 20]


def test_limits_leave_room_for_the_fullest_image() -> None:
    data = measured([(512, 512)] * 3, [squares(9, count, 512, 512) for count in (10, 375, 20)])
    limits, nms = advise_limits(data, Crops(256, np.array([10, 20, 90])))
    assert limits.keys["TEST.DETECTIONS_PER_IMAGE"] == 600
    assert limits.keys["MODEL.RPN.POST_NMS_TOPK_TEST"] >= 1200
    assert limits.keys["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] == 256  # three for each of the 83 of a full crop
    assert limits.keys["MODEL.RPN.PRE_NMS_TOPK_TRAIN"] >= limits.keys["MODEL.RPN.POST_NMS_TOPK_TRAIN"] >= 500
    assert nms.keys == {"MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5, "MODEL.RPN.NMS_THRESH": 0.7}


def test_boxes_that_nms_would_drop_raise_its_threshold() -> None:
    data = measured([(512, 512)], [squares(30, 100, 512, 512)])
    data.objects.box_iou[:10] = 0.65
    nms = advise_limits(data, Crops(0, np.array([100])))[1]
    assert nms.keys["MODEL.ROI_HEADS.NMS_THRESH_TEST"] == 0.7
    assert "would drop 5.0 %" in nms.reason


def test_anchors_say_what_they_bring() -> None:
    data = measured([(512, 512)] * 3, [squares(23, 40, 512, 512, n) for n in range(3)])
    numbers, advice = advise_anchors(data, scaled(data, 0))
    assert numbers["cases"]["suggested"]["recall70"] > numbers["cases"]["before"]["recall70"] + 0.2
    assert len(advice.keys["MODEL.ANCHOR_GENERATOR.SIZES"]) == 5
    assert np.allclose(numbers["clusters"]["shapes"], 23)


@pytest.mark.parametrize(("side", "finer"), [(8.0, True), (11.0, True), (12.0, False), (28.0, False), (None, False)])
def test_small_objects_get_a_finer_level_of_a_pretrained_backbone(side: float | None, finer: bool) -> None:
    changes = {key: value for one in advise_pretrained([], side, True) for key, value in one.keys.items()}
    assert ("p1" in changes.get("MODEL.ROI_HEADS.IN_FEATURES", [])) == finer
    assert advise_pretrained([], side, False) == [], "a backbone without such a level"


def test_colours_are_kept_for_a_pretrained_backbone() -> None:
    coloured = advise_intensities(
        measured([(64, 64)] * 2, [[], []], pictures={0: picture(channels=3, colour=0.3, purple=0.1), 1: picture()})
    )
    assert [one.keys for one in advise_pretrained(coloured, None, True)] == [{"INPUT.GRAYSCALE": False}]
    gray = advise_intensities(measured([(64, 64)] * 2, [[], []], pictures={0: picture(), 1: picture()}))
    assert advise_pretrained(gray, None, True) == []


def test_masks_are_learnt_at_their_boundaries_and_judged() -> None:
    keys = advise_masks().keys
    assert keys["MODEL.ROI_MASK_HEAD.BOUNDARY_WEIGHT"] == 2
    assert keys["MODEL.ROI_MASK_HEAD.QUALITY.ENABLED"]


def test_data_without_an_object_gets_no_wrong_advice() -> None:
    data = measured([(64, 64)] * 2, [[], []])
    scale, _ = choose_scale(data)
    crops, _ = choose_crop(data, scale)
    assert scale.min_size == 0
    assert crops.size == 0
    assert advise_anchors(data, scale)[0] == {}
    assert advise_limits(data, crops)[0].keys["TEST.DETECTIONS_PER_IMAGE"] == 100
    assert advise_balance(data) == []
    assert advise_split(data, "a.json").command.startswith("detseg split a.json --folds 2")


def test_rare_groups_and_classes_are_balanced() -> None:
    boxes = [squares(9, 5, 64, 64)] * 10
    data = measured([(64, 64)] * 10, boxes, groups=["a"] * 9 + ["b"])
    assert advise_balance(data)[0].keys == {"DATALOADER.BALANCE_BY": "group", "DATALOADER.BALANCE_POWER": 0.5}
    classes = [[0] * 5] * 9 + [[1] * 5]
    data = measured([(64, 64)] * 10, boxes, classes=classes, names=("x", "y"))
    assert advise_balance(data)[0].keys["DATALOADER.BALANCE_BY"] == "category"
    assert advise_balance(measured([(64, 64)] * 10, boxes)) == []
    assert class_weights(np.array([90, 10, 0])).tolist() == pytest.approx([0.2, 1.8, 0])


def test_split_keeps_places_together_and_spreads_kinds() -> None:
    places = [{"plate": f"p{n // 3}"} for n in range(12)]
    groups = ["a", "b", "c"] * 4
    data = measured([(64, 64)] * 12, [squares(9, 5, 64, 64)] * 12, places, groups=groups)
    data.similar.append(SimilarPair(0, 1, 0.99, False))
    advice = advise_split(data, "a.json")
    assert advice.command == "detseg split a.json --folds 4 --stratify-by group --group-by plate --output folds"
    assert "2 images are near-duplicates" in advice.reason
    assert "--group-by group" in advice.reason


def test_plates_are_found_inside_of_a_field() -> None:
    places = [{"sample_id": f"astro_plate{n // 3}_well{n}"} for n in range(12)]
    data = measured([(64, 64)] * 12, [squares(9, 5, 64, 64)] * 12, places)
    command = advise_split(data, "a.json").command
    assert "--folds 4 --group-by sample_id --group-pattern 'plate[0-9]+'" in command


def test_kinds_of_pictures() -> None:
    assert appearance_of(picture()) == "fluorescence"
    assert appearance_of(picture(median=120, objects=110, background=122)) == "phase_contrast"
    assert appearance_of(picture(channels=3, colour=0.2, purple=0.1)) == "histology"
    assert appearance_of(picture(channels=3, colour=0.2, purple=-0.1)) == "thin_sections"


def advice_on(*pictures: IntensityStatistics) -> dict[str, Any]:
    data = measured([(64, 64)] * len(pictures), [[] for _ in pictures], pictures=dict(enumerate(pictures)))
    found = advise_intensities(data)
    keys = {key: value for one in found for key, value in one.keys.items()}
    return keys | {"preset": [one.preset for one in found if one.preset]}


def test_intensities_that_use_their_range_stay() -> None:
    keys = advice_on(*[picture()] * 10)
    assert keys == {"INPUT.SCALING": "none", "preset": ["augment_fluorescence.yaml"]}


def test_deep_dim_and_mixed_pictures_are_stretched() -> None:
    assert advice_on(*[picture(dtype="uint16", high=9000)] * 3)["INPUT.SCALING"] == "percentile"
    assert advice_on(*[picture(high=60, objects=40)] * 3)["INPUT.SCALING"] == "percentile"
    assert advice_on(*[picture(), picture(high=90, objects=60)] * 5)["INPUT.SCALING"] == "percentile"


def test_dark_objects_among_bright_ones_are_inverted_where_the_rule_finds_them() -> None:
    bright_ground = picture(median=220, objects=60, background=225)
    assert advice_on(*[picture()] * 8, *[bright_ground] * 4)["INPUT.INVERT"] == "auto"
    hidden = picture(median=60, objects=20, background=70)  # dark objects on dark ground
    keys = advice_on(*[picture()] * 8, *[hidden] * 4)
    assert keys["INPUT.INVERT"] == "none"
    assert keys["INPUT.RANDOM_INVERT"] == 0.5
    assert "INPUT.INVERT" not in advice_on(*[bright_ground] * 5)


def test_channels_and_colours() -> None:
    keys = advice_on(*[picture(channels=4)] * 2)
    assert keys["INPUT.CHANNELS"] == [0, 1, 2, 3]
    assert len(keys["MODEL.PIXEL_MEAN"]) == len(keys["MODEL.PIXEL_STD"]) == 4
    assert advice_on(picture(channels=3, colour=0.3, purple=0.1), picture())["INPUT.GRAYSCALE"] is True


@pytest.mark.parametrize(
    ("value", "rounded"), [(0, 1), (1, 1), (7, 8), (100, 100), (101, 150), (562.5, 600), (700, 800), (801, 1000)]
)
def test_limits_are_round_numbers(value: float, rounded: int) -> None:
    assert round_up(value) == rounded
    assert round_up(value, 100) == max(rounded, 100)


def test_shares_as_text() -> None:
    assert [percent(share) for share in (0, 0.004, 0.5, 0.999, 1)] == ["0 %", "0.4 %", "50 %", "99.9 %", "100 %"]


def test_phase_contrast_is_not_inverted() -> None:
    pictures = [picture(median=120, objects=90 if n % 2 else 160, background=125) for n in range(10)]
    assert not {"INPUT.INVERT", "INPUT.RANDOM_INVERT"} & advice_on(*pictures).keys()
