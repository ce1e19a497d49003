"""The whole model: training and prediction, at the edges too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_for_tests import disks, given_boxes, small_model, without_objects

from detseg.errors import ConfigError, DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.rle import bounding_boxes, decode
from detseg.structures.sample import Sample

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


def backward(losses: dict[str, torch.Tensor]) -> None:
    assert set(losses) == LOSSES
    assert all(torch.isfinite(loss) and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()


def test_losses_fall_in_training() -> None:
    model = small_model().train()
    samples = [disks(8, (96, 128), seed=1), disks(5, (80, 64), seed=2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(25):
        optimizer.zero_grad()
        losses = model(samples)
        backward(losses)
        optimizer.step()
        totals.append(float(sum(loss.detach() for loss in losses.values())))
    assert totals[-1] < 0.6 * totals[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "samples",
    [
        [without_objects((64, 64))],
        [without_objects((64, 64)), disks(6, (64, 96))],
        [disks(1, (1, 1))],
        [disks(3, (33, 7))],
    ],
    ids=["no objects", "one image without", "one pixel", "narrow"],
)
@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", ""])
def test_training_on_little(samples: list[Sample], norm: str) -> None:
    # The maps of one pixel have no variance: BatchNorm refuses those by itself in the backbone.
    changes = {
        "MODEL__RESNETS__NORM": "FrozenBN",
        "MODEL__ROI_MASK_HEAD__NORM": norm,
        "MODEL__ROI_MASK_HEAD__CONV_DIM": 32,
    }
    model = small_model(**changes).train()
    backward(model(samples))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_an_object_without_pixels_is_left_out() -> None:
    sample = disks(6, (64, 64))
    layers = np.where(sample.layers.layers == 2, 0, sample.layers.layers).astype(np.int32)
    with_hole = Sample(sample.image, LabelLayers(layers, len(sample.layers)), sample.classes)
    kept = np.flatnonzero(with_hole.layers.areas())
    without = Sample(sample.image, with_hole.layers.select(kept), sample.classes[kept])
    model = small_model().train()
    torch.manual_seed(0)
    first = model([with_hole])
    torch.manual_seed(0)
    second = model([without])
    assert all(torch.equal(first[name], second[name]) for name in LOSSES)


def test_prediction_is_in_output_pixels_and_sorted() -> None:
    model = small_model().eval()
    samples = [disks(8, (96, 128)), disks(5, (64, 50))]
    answers = model.predict([sample.image for sample in samples], output_sizes=[(48, 64), (128, 100)])
    for answer, (height, width) in zip(answers, [(48, 64), (128, 100)], strict=True):
        assert (answer.height, answer.width) == (height, width)
        assert 0 < len(answer) <= 20
        assert answer.boxes.min() >= 0
        assert answer.boxes[:, 2].max() <= width
        assert answer.boxes[:, 3].max() <= height
        assert (np.diff(answer.scores) <= 0).all()
        assert set(answer.classes.tolist()) <= {0, 1}
        assert all(rle["size"] == [height, width] for rle in answer.rles)


def test_no_detection_and_no_image() -> None:
    model = small_model(MODEL__ROI_HEADS__SCORE_THRESH_TEST=1.0).eval()
    answer = model.predict([without_objects((40, 30)).image], soft_masks=True)[0]
    assert len(answer) == 0
    assert answer.rles == []
    assert answer.soft_masks == []
    assert model.predict([]) == []


def test_one_pixel() -> None:
    model = small_model().eval()
    answer = model.predict([np.zeros((1, 1, 3), dtype=np.uint8)])[0]
    assert all(decode(rle).shape == (1, 1) for rle in answer.rles)


def test_batching_does_not_matter() -> None:
    model = small_model().eval()
    images = [disks(8, (64, 96), seed=1).image, disks(5, (64, 96), seed=2).image]
    for one, image in zip(model.predict(images), images, strict=True):
        alone = model.predict([image])[0]
        np.testing.assert_allclose(one.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, alone.boxes, atol=1e-3)


def test_masks_for_given_boxes() -> None:
    model = small_model().eval()
    image = disks(8, (64, 96)).image
    first = model.predict([image], output_sizes=[(128, 192)])[0]
    again = model.predict_masks([image], [first], [(128, 192)])[0]
    np.testing.assert_allclose(again.boxes, first.boxes, atol=1e-4)
    np.testing.assert_array_equal(again.scores, first.scores)
    np.testing.assert_array_equal(again.classes, first.classes)
    different = [np.sum(decode(a) != decode(b)) for a, b in zip(again.rles, first.rles, strict=True)]
    assert max(different) <= 3


def test_given_boxes_keep_their_number() -> None:
    model = small_model(MODEL__ROI_HEADS__NUM_CLASSES=1).eval()
    image = disks(8, (64, 96)).image
    boxes = np.array([[10, 10, 30, 30], [-20, -20, -5, -5], [90, 60, 200, 200], [5, 5, 5, 9]], dtype=np.float32)
    answer = model.predict_masks([image, image], [given_boxes(boxes, (64, 96)), given_boxes([], (64, 96))])
    assert [len(one) for one in answer] == [4, 0]
    assert not decode(answer[0].rles[1]).any()
    assert not decode(answer[0].rles[3]).any()


def test_masks_of_given_boxes_depend_on_their_classes_unless_class_agnostic() -> None:
    images = [disks(3, (32, 32)).image]
    given = [given_boxes([[1, 1, 25, 25]] * 2, (32, 32), classes=[0, 1])]
    (first, second) = small_model().eval().predict_masks(images, given, soft_masks=True)[0].soft_masks
    assert not np.array_equal(first, second)
    agnostic = small_model(MODEL__ROI_MASK_HEAD__CLS_AGNOSTIC_MASK=True).eval()
    (first, second) = agnostic.predict_masks(images, given, soft_masks=True)[0].soft_masks
    assert np.array_equal(first, second)


def test_masks_lie_in_their_boxes() -> None:
    model = small_model().eval()
    answer = model.predict([disks(8, (64, 96)).image])[0]
    full = [index for index, rle in enumerate(answer.rles) if decode(rle).any()]
    tight = bounding_boxes([answer.rles[index] for index in full])
    assert (tight[:, :2] >= np.floor(answer.boxes[full, :2])).all()
    assert (tight[:, 2:] <= np.ceil(answer.boxes[full, 2:])).all()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_numbers_of_channels(channels: int) -> None:
    model = small_model(MODEL__PIXEL_MEAN=[10.0] * channels, MODEL__PIXEL_STD=[5.0] * channels)
    backward(model([disks(5, (64, 64), channels=channels)]))
    image = np.random.default_rng(0).integers(0, 60000, (64, 64, channels)).astype(np.uint16)
    assert len(model.eval().predict([image])) == 1
    with pytest.raises(DataError, match=rf"\(height, width, {channels}\)"):
        model.predict([image[:, :, :0]])


def test_rgb_is_turned_around_for_a_bgr_model_only() -> None:
    image = disks(4, (32, 32)).image
    for color_format, expected in (("BGR", image[..., ::-1]), ("RGB", image)):
        model = small_model(INPUT__FORMAT=color_format, MODEL__PIXEL_MEAN=[0.0] * 3, MODEL__PIXEL_STD=[2.0] * 3)
        batch = model.image_input([image], torch.device("cpu"))
        np.testing.assert_array_equal(batch.tensor[0].permute(1, 2, 0).numpy() * 2, expected)


def test_padding_is_zero_after_normalisation() -> None:
    model = small_model()
    batch = model.image_input([np.zeros((20, 40, 3), dtype=np.uint8)], torch.device("cpu"))
    assert batch.tensor.shape == (1, 3, 32, 64)
    assert batch.sizes == [(20, 40)]
    assert not batch.tensor[:, :, 20:].any()
    assert not batch.tensor[:, :, :, 40:].any()


def test_a_box_head_of_convolutions_alone() -> None:
    model = small_model(MODEL__ROI_BOX_HEAD__NUM_FC=0, MODEL__ROI_BOX_HEAD__NUM_CONV=1, MODEL__ROI_BOX_HEAD__CONV_DIM=8)
    assert model.roi_heads.box_predictor.cls_score.in_features == 8 * 7 * 7
    backward(model([disks(5, (64, 64))]))
    with pytest.raises(ConfigError, match="NUM_FC"):
        small_model(MODEL__ROI_BOX_HEAD__NUM_FC=0)


def test_without_masks() -> None:
    model = small_model(MODEL__MASK_ON=False)
    assert set(model([disks(5, (64, 64))])) == LOSSES - {"loss_mask"}
    answer = model.eval().predict([disks(5, (64, 64)).image])[0]
    assert answer.rles is None
    with pytest.raises(DataError, match="mask head"):
        model.predict_masks([disks(5, (64, 64)).image], [answer])


def test_bfloat16_on_the_cpu() -> None:
    model = small_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([disks(8, (64, 64))])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    backward(losses)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = model.eval().predict([disks(8, (64, 64)).image], soft_masks=True)[0]
    assert answer.boxes.dtype == np.float32


def test_prefer_speed_changes_no_name_and_little_else() -> None:
    changes = {"MODEL__RESNETS__NORM": "GN", "MODEL__FPN__NORM": "GN", "MODEL__FPN__OUT_CHANNELS": 32,
               "MODEL__RESNETS__STEM_OUT_CHANNELS": 32, "MODEL__RESNETS__RES2_OUT_CHANNELS": 32}  # fmt: skip
    samples = [disks(6, (64, 64))]
    slow, fast = small_model(**changes), small_model(**changes).prefer_speed()
    assert slow.state_dict().keys() == fast.state_dict().keys()
    results = []
    for model in (slow, fast):
        torch.manual_seed(0)
        losses = model(samples)
        backward(losses)
        norm = torch.stack([parameter.grad.norm() for parameter in model.backbone.parameters()]).norm()
        results.append(torch.stack([*losses.values(), norm]))
    torch.testing.assert_close(results[0], results[1], rtol=2e-3, atol=1e-4)


def test_prediction_in_training_mode_is_refused() -> None:
    with pytest.raises(RuntimeError, match="eval"):
        small_model().train().predict([disks(1, (32, 32)).image])


def test_an_unannotated_image_and_a_class_too_many_are_refused() -> None:
    sample = disks(3, (32, 32))
    with pytest.raises(DataError, match=r"disks_0.png.*annotations"):
        small_model()([Sample(sample.image, None, file_name="disks_0.png")])
    wrong = Sample(sample.image, sample.layers, sample.classes + 2, file_name="disks_0.png")
    with pytest.raises(DataError, match=r"disks_0.png.*NUM_CLASSES"):
        small_model()([wrong])


def test_an_unknown_architecture_names_the_known() -> None:
    with pytest.raises(ConfigError, match="GeneralizedRCNN"):
        small_model(MODEL__META_ARCHITECTURE="NoSuchNet")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL__RPN__HEAD_NAME", "MyHead"),
        ("MODEL__ROI_HEADS__NAME", "PointRendROIHeads"),
        ("MODEL__ROI_BOX_HEAD__POOLER_TYPE", "ROIPool"),
        ("MODEL__BACKBONE__NAME", "build_swint_fpn_backbone"),
        ("MODEL__RESNETS__NORM", "naiveSyncBN"),
        ("MODEL__ROI_HEADS__IN_FEATURES", ["p9"]),
    ],
)
def test_what_native_does_not_have_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key.replace("__", ".")):
        small_model(**{key: value})


@pytest.mark.parametrize("features", [["p5", "p4", "p3", "p2"], ["p2", "p4"], ["p2", "p4", "p3", "p5"], ["p2", "p2"]])
def test_regions_are_pooled_from_successive_levels_only(features: list[str]) -> None:
    """Of others each region would come from a wrong level, since its size decides by the number of the level."""
    with pytest.raises(ConfigError, match=r"MODEL.ROI_HEADS.IN_FEATURES.*consecutive levels, finest first"):
        small_model(MODEL__ROI_HEADS__IN_FEATURES=features)


def test_a_resnet_without_normalisation_has_no_biases() -> None:
    backbone = small_model(MODEL__RESNETS__NORM="").backbone
    assert [name for name in backbone.bottom_up.state_dict() if name.endswith("bias")] == []
    assert "fpn_lateral2.bias" in backbone.state_dict()


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "nnSyncBN", "GN", "LN", ""])
def test_every_parameter_has_a_gradient_also_without_objects(norm: str) -> None:
    width = 32 if norm == "GN" else 16
    model = small_model(MODEL__ROI_MASK_HEAD__NORM=norm, MODEL__ROI_MASK_HEAD__CONV_DIM=width)
    assert model.trains_everything
    sum(model([without_objects((64, 64))] * 2).values()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_a_feature_map_that_only_region_heads_look_at_may_be_left_out_of_training() -> None:
    sizes = [[16], [32], [64], [128]]
    model = small_model(MODEL__RPN__IN_FEATURES=["p3", "p4", "p5", "p6"], MODEL__ANCHOR_GENERATOR__SIZES=sizes)
    assert not model.trains_everything


@pytest.mark.parametrize(("channels", "last"), [(8, False), (16, True)])
def test_very_narrow_networks_keep_their_layout(channels: int, last: bool) -> None:
    # With channels last, oneDNN writes beyond the gradients of 1 x 1 convolutions of stride 2 that are this narrow.
    model = small_model(MODEL__RESNETS__RES2_OUT_CHANNELS=channels).prefer_speed()
    weight = model.backbone.bottom_up.res2[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) is last
