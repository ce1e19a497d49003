"""A teacher's detections as labels of the student's view: what is sure, ignored, gated, and where it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import TINY_RCNN, as_words

from detseg.config import load_config
from detseg.data.augment.geometric import GeometricMap
from detseg.data.views import Views
from detseg.engine.mean_teacher.options import PseudoLabelOptions
from detseg.engine.mean_teacher.pseudo_labels import Labeler
from detseg.engine.mean_teacher.thresholds import ClassThresholds
from detseg.engines.build import build_model
from detseg.models.rcnn.rpn import Proposals
from detseg.models.rcnn.targets import Targets
from detseg.models.region_segmenter import Detections, RegionMasks
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import BOX_LOSS, CLASS_LOSS, MASK_LOSS, Sample

SIZE = 96
BOXES = torch.tensor([[10.0, 12, 34, 40], [50, 20, 78, 44], [20, 60, 60, 90]])
TINY = as_words(TINY_RCNN | {"MODEL.ROI_HEADS.NUM_CLASSES": 2})
CASCADE = [
    *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 50),
]


def options(**changes: Any) -> PseudoLabelOptions:
    own = PseudoLabelOptions.from_config(load_config("_base_/mask_rcnn_small_fpn.yaml", TINY))
    return dataclasses.replace(own, **changes)


def labeler_that_finds(
    scores: list[float], classes: list[int], monkeypatch: pytest.MonkeyPatch, mask_logit: float = 4.0, **changes: Any
) -> Labeler:
    """A real network whose masks fill their boxes, and whose box head has already decided on BOXES."""
    torch.manual_seed(0)
    model = build_model(load_config("_base_/mask_rcnn_small_fpn.yaml", TINY)).eval()
    with torch.no_grad():
        model.roi_heads.mask_head.predictor.weight.zero_()
        model.roi_heads.mask_head.predictor.bias.fill_(mask_logit)
        model.roi_heads.box_predictor.bbox_pred.weight.zero_()
    found = Detections(BOXES[: len(scores)], torch.tensor(scores), torch.tensor(classes, dtype=torch.int64))
    monkeypatch.setattr(model.roi_heads, "detect", lambda *_: [found])
    return Labeler(model, options(**changes))


def views(geometry: GeometricMap | None = None, ignore: np.ndarray | None = None) -> Views:
    image = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
    geometry = geometry or GeometricMap.identity(SIZE, SIZE)
    strong = Sample(geometry.apply_image(image), ignore=ignore, file_name="a.png")
    return Views(image, strong, geometry)


def test_sure_is_a_label_unsure_is_ignored_and_the_rest_is_background(monkeypatch) -> None:
    labeler = labeler_that_finds([0.9, 0.5, 0.1], [1, 0, 0], monkeypatch)
    (labels,) = labeler([views()])
    sample = labels.sample
    assert (labels.found, labels.unsure) == (1, 1)
    assert sample.classes.tolist() == [1]
    assert sample.layers.boxes()[0].tolist() == [10, 12, 34, 40]
    expected = np.zeros((SIZE, SIZE), dtype=bool)
    expected[20:44, 50:78] = True
    np.testing.assert_array_equal(sample.ignore, expected)


def test_thresholds_are_those_of_the_class(monkeypatch) -> None:
    changes = {"thresholds": (0.95, 0.6), "ignore_from": (0.3, 0.3)}
    (labels,) = labeler_that_finds([0.9, 0.7, 0.7], [0, 1, 0], monkeypatch, **changes)([views()])
    assert labels.sample.classes.tolist() == [1]
    assert labels.unsure == 2


def test_an_image_with_nothing_sure_is_no_sample(monkeypatch) -> None:
    (labels,) = labeler_that_finds([0.6, 0.5], [0, 0], monkeypatch)([views()])
    assert labels.sample is None
    (labels,) = labeler_that_finds([], [], monkeypatch)([views()])
    assert labels.sample is None


def test_masks_are_where_the_students_view_shows_the_object(monkeypatch) -> None:
    turned = GeometricMap.identity(SIZE, SIZE).resize(144, 144).flip_horizontal().rotate90(1)
    (labels,) = labeler_that_finds([0.9, 0.9, 0.9], [0, 1, 1], monkeypatch)([views(turned)])
    back = np.linalg.inv(turned.matrix)
    for box, seen in zip(BOXES.numpy(), labels.sample.layers.boxes(), strict=True):
        corners = back @ [[box[0], box[2]], [box[1], box[3]], [1, 1]]
        expected = [corners[0].min(), corners[1].min(), corners[0].max(), corners[1].max()]
        np.testing.assert_allclose(seen, expected, atol=0.5)  # boxes of whole pixels


def test_what_is_hidden_or_beyond_the_weak_view_is_ignored(monkeypatch) -> None:
    hidden = np.zeros((SIZE, SIZE), dtype=bool)
    hidden[:20] = True
    moved = GeometricMap.identity(SIZE, SIZE).window(0, 30, SIZE, SIZE)
    (labels,) = labeler_that_finds([0.9, 0.9], [0, 0], monkeypatch)([views(moved, hidden)])
    assert labels.sample.ignore[:20].all()
    assert labels.sample.ignore[:, SIZE - 30 :].all()
    assert not labels.sample.ignore[20:, : SIZE - 30].any()
    # The first object reaches the left edge here only: of both, all that the weak view shows is known.
    assert labels.sample.layers.boxes()[0].tolist() == [0, 12, 4, 40]


def test_boxes_that_the_weak_view_cuts_teach_none_where_more_is_seen(monkeypatch) -> None:
    labeler = labeler_that_finds([0.9, 0.9], [0, 0], monkeypatch, box_gate="always")
    found = Detections(
        torch.tensor([[0.0, 12, 34, 40], [50, 20, 78, 44]]), torch.tensor([0.9, 0.9]), torch.zeros(2).long()
    )
    monkeypatch.setattr(labeler.teacher.roi_heads, "detect", lambda *_: [found])
    (inside,) = labeler([views()])
    assert inside.sample.object_weights[:, BOX_LOSS].tolist() == [1, 1]
    beyond = GeometricMap.identity(SIZE, SIZE).window(-20, -20, 136, 136)
    (labels,) = labeler([views(beyond)])
    assert labels.sample.object_weights[:, BOX_LOSS].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "stable"),
    [
        ({"box_gate": "always"}, True),
        ({"box_gate": "never"}, False),
        # Heads that move nothing leave the jitter, of 6 % at most, whose standard deviation is about 3.5 %.
        ({"box_gate": "jitter", "max_jitter": 0.02}, False),
        ({"box_gate": "jitter", "max_jitter": 0.06}, True),
    ],
)
def test_boxes_teach_where_the_gate_lets_them(monkeypatch, changes: dict[str, Any], stable: bool) -> None:
    (labels,) = labeler_that_finds([0.9, 0.8], [0, 1], monkeypatch, **changes)([views()])
    weights = labels.sample.object_weights
    assert weights[:, BOX_LOSS].tolist() == [float(stable)] * 2
    assert (weights[:, [CLASS_LOSS, MASK_LOSS]] == 1).all()


def test_boxes_that_the_heads_find_again_are_stable(monkeypatch) -> None:
    """Heads that bring every jittered box back: no deviation is left."""
    labeler = labeler_that_finds([0.9, 0.8], [0, 1], monkeypatch, box_gate="jitter", max_jitter=1e-4)
    heads = labeler.teacher.roi_heads
    monkeypatch.setattr(
        heads, "move", lambda features, boxes, classes, sizes: [BOXES[:2].repeat(len(boxes[0]) // 2, 1)]
    )
    (labels,) = labeler([views()])
    assert labels.sample.object_weights[:, BOX_LOSS].tolist() == [1, 1]


def test_a_proposal_has_to_agree_with_a_box(monkeypatch) -> None:
    labeler = labeler_that_finds([0.9, 0.9], [0, 0], monkeypatch, box_gate="rpn", min_agreement=0.75)
    near = BOXES[:1] + torch.tensor([0, 0, 2.0, 0])
    monkeypatch.setattr(labeler.teacher, "propose", lambda _: [Proposals(near, torch.zeros(1))])
    (labels,) = labeler([views()])
    assert labels.sample.object_weights[:, BOX_LOSS].tolist() == [1, 0]


def test_masks_of_low_scores_teach_none(monkeypatch) -> None:
    (labels,) = labeler_that_finds([0.9, 0.75], [0, 0], monkeypatch, mask_score=0.8)([views()])
    assert labels.sample.object_weights[:, MASK_LOSS].tolist() == [1, 0]


@pytest.mark.parametrize(("logit", "expected"), [(0.0, 0), (8.0, 255), (1.0986, 128)])
def test_pixels_count_by_how_sure_the_mask_is(monkeypatch, logit: float, expected: int) -> None:
    """p = 0.5 counts nothing, p = 1 all, p = 0.75 half: |2 p - 1|."""
    labeler = labeler_that_finds([0.9], [0], monkeypatch, mask_logit=logit)
    (labels,) = labeler([views()])
    assert labels.sample.certainty[20, 20] == pytest.approx(expected, abs=2)
    assert labels.sample.certainty[90, 90] == 255
    (labels,) = labeler_that_finds([0.9], [0], monkeypatch, pixel_weights=False)([views()])
    assert labels.sample.certainty is None


@pytest.mark.parametrize("keys", [[], CASCADE], ids=["standard", "cascade"])
def test_a_real_teachers_labels_are_targets_of_a_real_student(keys: list[Any]) -> None:
    torch.manual_seed(1)
    cfg = load_config("_base_/mask_rcnn_small_fpn.yaml", [*TINY, *keys, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    student, teacher = build_model(cfg), build_model(cfg).eval()
    with torch.no_grad():  # every proposal is an object of class 1
        for name, parameter in teacher.named_parameters():
            if name.endswith("cls_score.bias"):
                parameter.copy_(torch.tensor([0.0, 6.0, 0.0]))
            if name.endswith("cls_score.weight"):
                parameter.zero_()
    geometry = GeometricMap.identity(SIZE, SIZE).flip_vertical()
    for gate in ("jitter", "rpn"):
        (labels,) = Labeler(teacher, options(thresholds=(0.5,), box_gate=gate))([views(geometry)])
        assert labels.found > 3
        assert set(labels.sample.classes.tolist()) == {1}
        targets = Targets.from_sample(labels.sample, 2, torch.device("cpu"))
        assert (targets.boxes[:, 2:] > targets.boxes[:, :2]).all()
        losses = student([labels.sample])
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()


def sample_with(count: int, of_class: int) -> Sample:
    labels = np.zeros((100, 100), dtype=np.int32)
    for number in range(count):
        labels[number * 5, :10] = number + 1
    return Sample(np.zeros((100, 100, 1), np.uint8), LabelLayers.from_label_image(labels), np.full(count, of_class))


def test_thresholds_follow_the_counts_of_the_labelled_images() -> None:
    """Of scores 0.005, 0.015, ... 0.995 in every view, as many are labels as the labelled images have objects."""
    thresholds = ClassThresholds([0.7, 0.7], adapts=True, bounds=(0.05, 0.95))
    scores = (np.arange(100) + 0.5) / 100
    for _ in range(40):
        found = [(scores, np.zeros(100, dtype=np.int64))]
        thresholds.observe([sample_with(18, 0), sample_with(12, 0)], found, [(100, 100)])
    # 15 an image; of the second class there is none, neither labelled nor found.
    np.testing.assert_allclose(thresholds.values, [0.85, 0.95], atol=1e-9)


def test_thresholds_count_by_area_and_stay_within_bounds() -> None:
    thresholds = ClassThresholds([0.7], adapts=True, bounds=(0.3, 0.9))
    scores = (np.arange(100) + 0.5) / 100
    for _ in range(40):  # views of four times the area may have four times as many
        thresholds.observe([sample_with(15, 0)], [(scores, np.zeros(100, dtype=np.int64))], [(200, 200)])
    np.testing.assert_allclose(thresholds.values, [0.4], atol=1e-9)
    for _ in range(400):
        thresholds.observe([sample_with(15, 0)], [(scores[:5], np.zeros(5, dtype=np.int64))], [(200, 200)])
    assert thresholds.values.tolist() == [0.3]


def test_fixed_thresholds_stay_and_moving_ones_go_on_from_a_checkpoint() -> None:
    fixed = ClassThresholds([0.7])
    fixed.observe([sample_with(3, 0)] * 50, [(np.full(9, 0.99), np.zeros(9, dtype=np.int64))] * 50, [(9, 9)] * 50)
    assert fixed.values.tolist() == [0.7]
    assert fixed.state_dict() == {}
    one, other = (ClassThresholds([0.7], adapts=True, bounds=(0.1, 0.9)) for _ in range(2))
    rng = np.random.default_rng(0)
    for number in range(60):
        batch = [sample_with(int(rng.integers(5, 15)), 0)], [(rng.random(30), np.zeros(30, dtype=np.int64))]
        one.observe(*batch, [(100, 100)])
        if number == 30:
            other.load_state_dict(one.state_dict())
        elif number > 30:
            other.observe(*batch, [(100, 100)])
    assert one.values.tolist() == other.values.tolist()


def test_masks_count_by_their_quality_where_the_model_judges_them(monkeypatch) -> None:
    labeler = labeler_that_finds([0.9, 0.8], [0, 0], monkeypatch, mask_score=0.6)
    quality = torch.tensor([0.75, 0.5])  # 0.9 x 0.75 is enough, 0.8 x 0.5 is not
    plain = labeler.teacher.region_masks
    monkeypatch.setattr(
        labeler.teacher,
        "region_masks",
        lambda *inputs: [RegionMasks(masks.probabilities, quality) for masks in plain(*inputs)],
    )
    (labels,) = labeler([views()])
    assert labels.sample.object_weights[:, MASK_LOSS].tolist() == [0.75, 0]
