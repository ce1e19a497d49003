"""The U-Net systems: objects to classes of pixels and back, losses, maps of any size, and what is decoded of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models_for_tests import disks, share_found, without_objects
from PIL import Image

from detseg.config import load_flat_config
from detseg.curation.inspection.measure import class_fidelity
from detseg.data.pixel_classes import INSIDE, flat_labels, objects_of_classes, pixel_classes
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.errors import ConfigError, OutputError
from detseg.models.bottom_up.decoding import predictions_of_labels, solidity
from detseg.models.bottom_up.losses import class_losses, mean_loss, pixel_ious
from detseg.models.bottom_up.seeds import edge_distances, watershed_from_peaks
from detseg.models.bottom_up.unet import UNet
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

SYSTEMS = ("BinaryUNet", "BoundaryUNet", "DistanceUNet", "InstanceUNet", "PixelEmbedding")
KEYS = {
    "MODEL.MASK_ON": True,
    "MODEL.UNET.ENCODER": "plain",
    "MODEL.UNET.CHANNELS": [8, 4],
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "TEST.DETECTIONS_PER_IMAGE": 7,
}


def build(name: str, **changes: object) -> UNet:
    torch.manual_seed(0)
    keys = KEYS | {"MODEL.META_ARCHITECTURE": name} | {key.replace("__", "."): value for key, value in changes.items()}
    return build_model(load_flat_config(keys))


def seeded(model: UNet, sample: Sample) -> dict[str, torch.Tensor]:
    """The losses of a sample; the pixels of pairs are drawn by torch's generator."""
    torch.manual_seed(0)
    return model([sample])


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(value for name, value in losses.items() if name.startswith("loss"))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_touching_objects_come_back_from_classes_of_pixels(width: int) -> None:
    """Two squares side by side, one in the corner of both, a lone pixel, one of two pixels beside a large one."""
    labels = np.zeros((40, 60), np.int32)
    labels[5:25, 5:20], labels[5:25, 20:38], labels[25:35, 20:30] = 1, 2, 3
    labels[38, 58], labels[10:12, 38] = 4, 5
    classes = pixel_classes(labels, width)
    assert np.array_equal(classes > 0, labels > 0)
    assert all((classes[labels == number] == INSIDE).any() for number in range(1, 6)), "cores survive"
    found = objects_of_classes(classes)
    assert found.max() == 5
    assert share_found(found, labels, 0.4) == 1
    assert share_found(found, labels, 0.98) >= 3 / 5, "those of more than two pixels"
    # as wide as asked for, in the middle of a long contact
    assert (classes[14] == 2).sum() == width


def test_what_the_boundary_cuts_off_a_core_is_no_object_of_its_own() -> None:
    labels = np.zeros((30, 30), np.int32)
    labels[5:25, 5:25] = 1
    labels[13:17, 7:25] = 2  # nearly cuts the other one in two
    found = objects_of_classes(pixel_classes(labels, 4))
    assert found.max() == 2


def test_where_objects_overlap_the_smallest_is_on_top() -> None:
    masks = np.zeros((2, 9, 9), bool)
    masks[0, 1:8, 1:8] = masks[1, 3:5, 3:5] = True
    for order in ([0, 1], [1, 0]):
        labels = flat_labels(LabelLayers.from_masks(masks[order]))
        assert (labels == order.index(1) + 1).sum() == 4


def test_distances_are_one_in_the_middle_and_their_peaks_are_the_objects() -> None:
    labels = np.zeros((30, 50), np.int32)
    labels[4:25, 3:24], labels[4:25, 24:47] = 1, 2
    distance = edge_distances(labels)
    assert distance[labels == 0].max() == 0
    assert distance[14, 13] == distance[labels == 2].max() == 1
    assert distance[14, 23] == distance[14, 24] < 0.2
    assert np.array_equal(watershed_from_peaks(distance, labels > 0, 0.1), labels)
    assert watershed_from_peaks(distance, labels > 0, 0.95).max() == 1
    assert watershed_from_peaks(distance, np.zeros_like(labels, bool), 0.1).max() == 0


def test_known_losses() -> None:
    logits = torch.zeros(1, 2, 1, 4)
    target = torch.tensor([[[0, 1, 1, 1]]])
    share = torch.tensor([[[1.0, 1.0, 0.0, 0.5]]])
    losses = class_losses("x", logits, target, share, ("cross_entropy", "focal", "dice"))
    ln2 = float(np.log(2))
    assert losses["loss_x"].item() == pytest.approx(ln2 * 2.5 / 3)
    assert losses["loss_x_focal"].item() == pytest.approx(ln2 * 2.5 / 3 / 4)
    assert losses["loss_x_dice"].item() == pytest.approx(1 - (2 * 0.75 + 1) / (1.25 + 1.5 + 1))
    weighted = class_losses("x", logits, target, share, ("cross_entropy",), (1.0, 3.0))
    assert weighted["loss_x"].item() == pytest.approx(ln2 * (1 + 3 + 1.5) / 7)
    assert mean_loss(torch.ones(1, 1, 4), torch.zeros(1, 1, 4)).item() == 0
    ious = pixel_ious(torch.tensor([[[[0.0, 0, 0, 1]], [[1.0, 1, 1, 0]]]]), target, share, ("x",))
    assert ious["iou_x"].item() == pytest.approx(1 / 3)
    nothing = pixel_ious(torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[0]]]), torch.ones(1, 1, 1), ("x",))
    assert nothing["iou_x"].item() == 1


@pytest.mark.parametrize("name", ["BoundaryUNet", "InstanceUNet", "PixelEmbedding"])
def test_pixels_of_every_class_are_compared_with_what_is_learnt_of_the_truth(name: str) -> None:
    keys = {"MODEL__UNET__HEADS": ["distance", "boundary"], "MODEL__EMBEDDING__LOSS": "binary"}
    model = build(name, MODEL__ROI_HEADS__NUM_CLASSES=1, MODEL__UNET__BOUNDARY_WIDTH=2, **keys)
    labels = np.zeros((1, 12, 20), np.int32)
    labels[0, 2:10, 2:8], labels[0, 2:10, 8:18] = 1, 2  # boundary: 8 pixels of each; inside: 112
    layers = LabelLayers(labels, 2)
    background, inside, boundary = np.eye(3, dtype=np.float32)[pixel_classes(labels[0], 2)].transpose(2, 0, 1)
    missed = boundary.copy()
    missed[2:6] = 0  # half of the boundary is said to be inside
    maps = {
        "BoundaryUNet": [background, 1 - background - missed, missed],
        "InstanceUNet": [1 - background, inside, missed],
        "PixelEmbedding": [1 - background, 1 - background - missed],
    }
    found = model.pixel_shares(np.stack(maps[name]), layers)
    wanted = {"iou_boundary": [8, 16]}
    if name != "InstanceUNet":  # which has no inside
        wanted |= {"iou_inside": [112, 120], "pixel_accuracy": [240 - 8, 240]}
    assert {key: counts.tolist() for key, counts in found.items()} == wanted
    ignore = np.zeros((12, 20), bool)
    ignore[2:6] = True
    found = model.pixel_shares(np.stack(maps[name]), layers, ignore)
    assert all(part == whole for part, whole in found.values()), "where it is wrong, nothing counts"
    assert found["iou_boundary"].tolist() == [8, 8]
    assert name == "InstanceUNet" or found["pixel_accuracy"].tolist() == [240 - 80, 240 - 80]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_parameter_learns_from_images_of_several_sizes_and_of_none(name: str) -> None:
    model = build(name)
    losses = model([disks(6, (41, 50)), without_objects((30, 33))])
    assert all(torch.isfinite(loss) for loss in losses.values())
    total(losses).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.isfinite(total(model([without_objects((16, 16))])))


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_ignored_or_weighs_nothing_has_no_loss_and_no_gradient(name: str) -> None:
    model = build(name, MODEL__UNET__LOSSES=["cross_entropy", "focal", "dice"])
    sample = disks(6, (40, 40))
    ignored = np.zeros((40, 40), bool)
    ignored[:, :20] = True
    other = sample.layers.layers.copy()
    other[:, :, :20] = 1  # another truth where nothing counts
    layers = LabelLayers(other, len(sample.layers))
    for changes in ({"ignore": ignored}, {"certainty": np.where(ignored, 0, 255).astype(np.uint8)}):
        if name in ("DistanceUNet", "InstanceUNet", "PixelEmbedding") or (name == "BoundaryUNet" and changes):
            layers = sample.layers  # far targets would change: only that nothing comes from the ignored pixels
        a, b = (seeded(model, replace(sample, layers=one, **changes)) for one in (sample.layers, layers))
        own = [key for key in a if key.startswith("loss") and "classes" not in key]
        assert {key: a[key].item() for key in own} == {key: b[key].item() for key in own}
    nothing = total(model([replace(sample, ignore=np.ones((40, 40), bool))]))
    assert nothing.item() == 0
    weightless = model([replace(sample, weight=0.0)])
    assert total(weightless).item() == 0


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_size_and_channels_give_masks_in_pixels_of_the_output(name: str, channels: int) -> None:
    keys = {"MODEL__PIXEL_MEAN": [100.0] * channels, "MODEL__PIXEL_STD": [50.0] * channels}
    model = build(name, **keys).eval()
    image = disks(6, (41, 50), channels=channels).image
    (found,) = model.predict([image], output_sizes=[(82, 99)], soft_masks=True)
    assert len(found) <= 7
    assert (found.height, found.width) == (82, 99)
    assert np.all(np.diff(found.scores) <= 0)
    windows = rle_codec.decode_crops(found.rles)
    for crop, soft, box in zip(windows, found.soft_masks, found.boxes, strict=True):
        assert tuple(box) == crop.box
        assert np.array_equal(soft >= 127.5, crop.mask), "half the probability is the mask"
    assert model.predict([]) == []


def test_scores_classes_and_soft_masks_of_labels() -> None:
    labels = np.zeros((12, 14), np.int32)
    labels[1:5, 1:5], labels[6:10, 2:12] = 1, 2
    foreground = np.where(labels == 1, 0.9, np.where(labels == 2, 0.6, 0.2)).astype(np.float32)
    classes = np.stack([labels != 2, labels == 2]).astype(np.float32)
    found = predictions_of_labels(
        labels, foreground, np.array([0.5, 1.0]), class_maps=classes, threshold=0.4, soft_masks=True
    )
    assert found.scores == pytest.approx([0.6, 0.45])
    assert found.classes.tolist() == [1, 0]
    assert found.boxes.tolist() == [[2, 6, 12, 10], [1, 1, 5, 5]]
    assert [mask.min() >= 128 for mask in found.soft_masks] == [True, True]
    assert len(predictions_of_labels(labels, foreground, np.ones(2), limit=1)) == 1
    nothing = predictions_of_labels(np.zeros((3, 4), np.int32), np.zeros((3, 4), np.float32), np.zeros(0))
    assert (len(nothing), nothing.rles) == (0, [])


def test_solidity_tells_two_merged_objects_from_one() -> None:
    y, x = np.mgrid[:60, :60]
    labels = np.zeros((60, 60), np.int32)
    labels[(y - 15) ** 2 + (x - 15) ** 2 < 100] = 1
    labels[((y - 40) ** 2 + (x - 15) ** 2 < 100) | ((y - 40) ** 2 + (x - 34) ** 2 < 100)] = 2
    labels[1, 58] = 3
    shares = solidity(labels)
    assert shares[0] > 0.95
    assert shares[1] < 0.92
    assert shares[2] == 1


def test_maps_of_the_truth_are_decoded_to_the_truth() -> None:
    labels = np.zeros((64, 80), np.int32)
    labels[5:25, 5:26], labels[5:25, 26:50], labels[30:45, 8:30], labels[50:60, 60:80] = 1, 2, 3, 4
    boundary, distance = build("BoundaryUNet", MODEL__ROI_HEADS__NUM_CLASSES=1), build("DistanceUNet")
    three = np.eye(3, dtype=np.float32)[pixel_classes(labels, 2)].transpose(2, 0, 1)
    two = np.stack([labels > 0, edge_distances(labels), labels > 0, labels < 0]).astype(np.float32)
    for model, maps in ((boundary, three), (distance, two)):
        found = flat_labels(LabelLayers.from_rles(model.decode(maps).rles, 64, 80))
        assert np.array_equal(found > 0, labels > 0)
        assert len(np.unique(np.stack([labels, found])[:, labels > 0], axis=1).T) == 4, "the same pixels together"


def test_the_threshold_may_be_the_mean_of_the_output() -> None:
    model = build("BinaryUNet", MODEL__UNET__THRESHOLD=0.0, MODEL__ROI_HEADS__NUM_CLASSES=1)
    dim = np.full((1, 10, 10), 0.01, np.float32)
    dim[0, 2:5, 2:5] = 0.2
    found = model.decode(dim)
    assert rle_codec.area(found.rles).tolist() == [9]


def test_not_finite_weights_are_told() -> None:
    model = build("BinaryUNet").eval()
    model.heads["foreground"].bias.data.fill_(float("nan"))
    with pytest.raises(OutputError, match="not finite"):
        model.predict([disks(2, (16, 16)).image])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("MODEL.UNET.CLASS_WEIGHTS", [1.0], "expected 3 values"),
        ("MODEL.UNET.LOSSES", ["hinge"], "cross_entropy"),
        ("MODEL.UNET.CHANNELS", [], "at least one"),
        ("MODEL.RPN.NMS_THRESH", 0.5, "does not have this key"),
        ("MODEL.UNET.SEED_DEPTH", 0.3, "does not have this key"),
        ("MODEL.MASK_ON", False, "True"),
        ("MODEL.WEIGHTS", "package://efficientnet_lite0", "MODEL.UNET.ENCODER timm"),
    ],
)
def test_keys_that_it_cannot_follow_are_refused(key: str, value: object, said: str) -> None:
    cfg = load_flat_config(KEYS | {"MODEL.META_ARCHITECTURE": "BoundaryUNet", key: value})
    with pytest.raises(ConfigError, match=key) as error:
        validate_config(cfg, training=key == "MODEL.WEIGHTS")
    assert said in str(error.value)


def test_networks_of_timm_behind_decoders_with_any_depth() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    keys = {"MODEL__UNET__ENCODER": "timm", "MODEL__BACKBONE__FREEZE_AT": 0, "MODEL__TIMM__NAME": "resnet10t"}
    for decoder in ("Unet", "UnetPlusPlus", "MAnet"):
        model = build("BinaryUNet", **keys, MODEL__UNET__DECODER=decoder, MODEL__UNET__CHANNELS=[8, 8, 4])
        assert total(model([disks(3, (40, 56)), disks(3, (40, 56))])).isfinite()
    with pytest.raises(ConfigError, match=r"MODEL\.UNET\.CHANNELS.*one of 1, 2, 3, 4, 5"):
        build("BinaryUNet", **keys, MODEL__UNET__CHANNELS=[4] * 6)


def test_a_transformer_behind_a_decoder_trains_all_of_its_parameters_on_any_channels() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    keys = {"MODEL__UNET__ENCODER": "mit_b0", "MODEL__PIXEL_MEAN": [100.0] * 2, "MODEL__PIXEL_STD": [50.0] * 2}
    model = build("BoundaryUNet", **keys, MODEL__UNET__CHANNELS=[16, 8, 8, 8, 4])
    samples = [disks(3, (40, 56), channels=2), disks(3, (33, 61), channels=2)]
    total(model(samples)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.reach is None, "attention sees the whole image"
    (found,) = model.eval().predict([samples[0].image])
    assert (found.height, found.width) == (40, 56)
    cfg = KEYS | {"MODEL.META_ARCHITECTURE": "BoundaryUNet", "MODEL.UNET.ENCODER": "mit_b0"}
    with pytest.raises(ConfigError, match="expected one value per downsampling step of mit_b0: one of 5"):
        validate_config(load_flat_config(cfg))
    changes = {"MODEL.UNET.DECODER": "MAnet", "MODEL.UNET.CHANNELS": [16, 8, 8, 8, 4]}
    with pytest.raises(ConfigError, match="mit_b0 has no feature map of stride 2"):
        validate_config(load_flat_config(cfg | changes))


def test_real_nuclei_come_back_from_three_classes(shared_data: Callable[[str], Path]) -> None:
    """What bounds every BoundaryUNet: mean F1 over IoU 0.50 to 0.95 of at least 0.99, whatever the boundary."""
    with zipfile.ZipFile(shared_data("dsb2018_train.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("labels/"))
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))).astype(np.int32) for name in names]
    layers = [LabelLayers.from_label_image(image) for image in images if image.any()]
    for width in (1, 2, 3, 4):
        assert np.mean([class_fidelity(one, width) for one in layers]) >= 0.99


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_image_decides_on_maps_as_far_as_the_reach_and_no_farther(depth: int) -> None:
    """Tiles rely on it: one pixel changed changes no map beyond, and some near it."""
    model = build("BinaryUNet", MODEL__UNET__CHANNELS=[4] * depth, MODEL__ROI_HEADS__NUM_CLASSES=1).eval()
    image = np.random.default_rng(0).integers(0, 255, (144, 160, 3)).astype(np.float32)
    farthest = 0
    for y, x in ((70, 80), (71, 87), (77, 79)):
        changed = image.copy()
        changed[y, x] += 1e5
        (before,), (after,) = model.predict_maps([image]), model.predict_maps([changed])
        ys, xs = np.nonzero((before != after)[0])
        farthest = max(farthest, abs(ys - y).max(), abs(xs - x).max())
    assert model.reach // 2 < farthest <= model.reach
