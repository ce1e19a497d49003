"""Heads of InstanceUNet: objects to targets and back, directions that turn with a view, what counts in their losses."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models_for_tests import share_found, without_objects
from PIL import Image

from detseg.config import load_flat_config
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.engine.validation import validate_config
from detseg.engines.build import build_model
from detseg.errors import ConfigError
from detseg.inference.image_model import ImageModel
from detseg.inference.predictor import Predictor
from detseg.inference.tta import TestTimeAugmentation
from detseg.inference.views import parse_views
from detseg.models.bottom_up.decoding import solidity
from detseg.models.bottom_up.flows import centre_flows, flow_agreement, objects_of_flows
from detseg.models.bottom_up.heads import Head
from detseg.models.bottom_up.instance import InstanceUNet
from detseg.models.bottom_up.seeds import edge_distances
from detseg.models.bottom_up.stars import objects_of_stars, ray_directions, star_distances
from detseg.structures.label_layers import LabelLayers
from detseg.structures.symmetries import SYMMETRIES

EVERY = ["distance", "boundary", "flows", "stars"]
KEYS = {
    "MODEL.META_ARCHITECTURE": "InstanceUNet",
    "MODEL.MASK_ON": True,
    "MODEL.UNET.ENCODER": "plain",
    "MODEL.UNET.CHANNELS": [8, 4],
    "MODEL.UNET.HEADS": EVERY,
    "MODEL.UNET.RAYS": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "TEST.DETECTIONS_PER_IMAGE": 1000,
}


def build(**changes: object) -> InstanceUNet:
    torch.manual_seed(0)
    return build_model(load_flat_config(KEYS | {f"MODEL.UNET.{key}": value for key, value in changes.items()}))


def scene(height: int = 61, width: int = 83) -> np.ndarray:
    """Two touching disks, a bent object, one cut off by the border, single pixels alone and beside a disk."""
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int32)
    labels[(y - 20) ** 2 + (x - 15) ** 2 < 121] = 1
    labels[((y - 20) ** 2 + (x - 35) ** 2 < 121) & (labels == 0)] = 2
    labels[40:46, 8:40], labels[46:58, 8:13] = 3, 3
    labels[(y - 61) ** 2 + (x - 70) ** 2 < 150] = 4
    labels[3, 60] = 5
    labels[20, 46] = 6
    return labels


def maps_of(model: InstanceUNet, labels: np.ndarray) -> np.ndarray:
    """What a network says that learnt everything."""
    maps = model.targets(labels).values()
    return np.concatenate([one.reshape(-1, *labels.shape).astype(np.float32) for one in maps])


@pytest.mark.parametrize("objects_from", ["flows", "stars"])
def test_objects_come_back_from_what_the_heads_shall_say(objects_from: str) -> None:
    labels = scene()
    model = build(OBJECTS_FROM=objects_from)
    found, quality = model.objects(maps_of(model, labels), labels > 0)
    assert np.array_equal(found > 0, labels > 0)
    if objects_from == "flows":  # a bent object is no star-convex shape, which its corners may leave in parts
        assert found.max() == 6
        assert share_found(found, labels) == 1
        assert quality.min() > 0.9
    assert share_found(found, labels) >= 5 / 6


@pytest.mark.parametrize("objects_from", ["distance", "flows", "stars"])
def test_what_becomes_of_a_part_of_the_foreground_depends_on_no_other(objects_from: str) -> None:
    """Large images are decoded part by part; here parts are a pixel apart."""
    model = build(OBJECTS_FROM=objects_from)
    labels = np.zeros((24, 41), np.int32)
    y, x = np.mgrid[:24, :41]
    labels[(y - 11) ** 2 + (x - 10) ** 2 < 100], labels[(y - 11) ** 2 + (x - 30) ** 2 < 100] = 1, 2
    maps = maps_of(model, labels) + np.random.default_rng(0).normal(0, 0.2, (20 + 1, 24, 41)).astype(np.float32)
    assert not labels[:, 20].any()
    together, _ = model.objects(maps, labels > 0)
    for number in (1, 2):
        alone, _ = model.objects(maps, labels == number)
        pairs = np.unique(np.stack([together, alone])[:, labels == number], axis=1)
        assert len(pairs.T) == alone.max()


def test_flows_have_length_one_lead_to_the_middle_and_stay_inside() -> None:
    labels = scene()
    flows = centre_flows(labels)
    length = np.hypot(*flows)
    assert np.all(length[labels == 0] == 0)
    assert np.count_nonzero(length[labels > 0] < 0.999) == 6, "only the centre of every object has no direction"
    assert flows[1, 20, 6] > 0.9
    assert flows[0, 11, 15] > 0.9
    assert flows[0, 55, 10] < -0.7, "out of the short leg of the bent object, not through what is around it"
    assert flow_agreement(labels, flows) == pytest.approx(np.ones(6), abs=1e-6)
    opposite = flow_agreement(labels, -flows)
    assert opposite.tolist() == [0, 0, 0, 0, 1, 1]
    nothing = np.zeros((5, 4), np.int32)
    assert not centre_flows(nothing).any()
    assert objects_of_flows(centre_flows(nothing), nothing > 0).max() == 0


def test_rays_end_at_the_edge_of_the_object() -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[5:12, 4:20] = 1
    labels[5:12, 20:25] = 2  # touches
    labels[19, 29] = 3
    distances = star_distances(labels, 8)
    right, diagonal, down, _, left, _, up, _ = distances[:, 6, 8]
    assert (right, down, left, up) == (11.5, 5.5, 4.5, 1.5)
    assert diagonal == pytest.approx(5.5 * np.sqrt(2))
    assert distances[0, 6, 20] == 4.5
    assert distances[4, 6, 20] == 0.5
    assert distances[[0, 2, 4, 6], 19, 29].tolist() == [0.5] * 4
    assert not distances[:, labels == 0].any()
    empty = np.zeros((4, 5), np.int32)
    assert objects_of_stars(star_distances(empty, 8), np.zeros((4, 5), np.float32), empty > 0).max() == 0


def test_the_score_of_objects_from_distances_is_their_probability_by_their_share_of_the_hull() -> None:
    labels = np.zeros((30, 40), np.int32)
    labels[4:24, 4:8], labels[20:24, 8:24], labels[4:12, 28:36] = 1, 1, 2  # bent, and a square
    maps = np.stack([0.8 * (labels > 0), 0.5 * edge_distances(labels)]).astype(np.float32)
    found = build(HEADS=["distance"], OBJECTS_FROM="distance").decode(maps)
    assert found.scores[0] == pytest.approx(0.8), "that distances are too low says nothing of a mask"
    assert found.scores[1] == pytest.approx(0.8 * solidity(labels)[0])
    assert found.scores[1] < 0.6


@pytest.mark.parametrize("name", SYMMETRIES)
def test_directions_turn_with_the_image(name: str) -> None:
    """What is said of the turned image is what is said of the image, turned: a mirrored flow points the other way."""
    symmetry, labels = SYMMETRIES[name], scene()
    model = build()
    of_turned = maps_of(model, np.ascontiguousarray(symmetry.array(labels)))
    turned = model.turned(maps_of(model, labels), symmetry)
    assert np.array_equal(turned[0], of_turned[0])
    flows, own = turned[model.places["flows"]], of_turned[model.places["flows"]]
    cosine = (flows * own).sum(axis=0)[np.hypot(*own) > 0.5]
    assert cosine.mean() > 0.99, "but for centres on the line between two pixels"
    stars, own = turned[model.places["stars"]], of_turned[model.places["stars"]]
    # where a ray grazes a corner, the line of pixels from the other side may pass it
    assert np.abs(stars - own).mean() < 0.02
    back = model.turned(turned, symmetry.inverse)
    assert np.array_equal(back, maps_of(model, labels))


class Perfect(InstanceUNet):
    """Says of an image, whose gray values are the numbers of its objects, what the heads shall say."""

    def predict_maps(self, images, output_sizes=None):
        return [maps_of(self, image[..., 0].astype(np.int32)) for image in images]


@pytest.mark.parametrize("objects_from", ["flows", "stars"])
def test_eight_views_give_what_one_gives(objects_from: str) -> None:
    """Vectors that were not turned back would cancel each other."""
    model = build(OBJECTS_FROM=objects_from).eval()
    model.__class__ = Perfect
    image = scene()[:45, :50].astype(np.uint8)
    found = []
    for views in (["none"], ["eight"]):
        size = TestSizeOptions(min_size=0, max_size=4000)
        tta = TestTimeAugmentation(parse_views(views))
        found.append(Predictor(ImageModel(model, ImagePreprocess(), size), ["cell"], tta=tta)(image))
    labels = [LabelLayers.from_rles(one.rles, *image.shape).layers[0] for one in found]
    assert share_found(labels[1], labels[0]) >= 0.8
    assert np.median(found[1].scores) > 0.9


def test_lengths_are_those_of_the_output() -> None:
    """A network that sees the image at twice its size says twice the distances."""
    model = build()
    maps = np.ones((len(model.map_names), 3, 4), np.float32)
    scaled = model.scaled(maps.copy(), 0.5, 2.0)
    stars = scaled[model.places["stars"], 0, 0]
    assert stars[[0, 4, 8, 12]] == pytest.approx([2, 0.5, 2, 0.5])
    others = np.setdiff1d(np.arange(len(maps)), np.arange(len(maps))[model.places["stars"]])
    assert np.array_equal(scaled[others], maps[others])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_ignored_has_no_gradient_and_the_truth_no_loss_but_what_it_must(name: str) -> None:
    head: Head = build().kinds[name]
    labels = scene()
    target = torch.from_numpy(np.asarray(head.target(labels), dtype=np.float32))[None]
    share = torch.ones(1, *labels.shape)
    share[:, :, :30] = 0
    logits = torch.randn(1, head.channels, *labels.shape, requires_grad=True)
    sum(value for key, value in head.losses(logits, target, share).items() if key.startswith("loss")).backward()
    assert not logits.grad[..., :30].any()
    assert logits.grad[..., 30:].any()
    assert all(not value for key, value in head.losses(logits, target, 0 * share).items() if key.startswith("loss"))
    if name == "flows":
        assert head.losses(5 * target, target, share)["loss_flows"] == 0
        assert torch.allclose(head.maps(5 * target), target)
    if name == "stars":
        assert head.losses(target.clamp(min=0.5).log(), target, share)["loss_stars"] == 0
        assert torch.allclose(head.maps(target.clamp(min=0.5).log())[target >= 0.5], target[target >= 0.5])


def test_rays_point_where_they_say() -> None:
    assert np.allclose(ray_directions(4), [[0, 1], [1, 0], [0, -1], [-1, 0]])


def test_images_without_objects_teach_too() -> None:
    losses = build(OBJECTS_FROM="stars")([without_objects((17, 30))])
    assert all(torch.isfinite(value) for value in losses.values())


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"HEADS": ["flows"], "OBJECTS_FROM": "distance"}, "OBJECTS_FROM", "needs distance in MODEL.UNET.HEADS"),
        ({"HEADS": ["stars"], "OBJECTS_FROM": "stars"}, "OBJECTS_FROM", "needs distance in"),
        ({"HEADS": ["distance"], "OBJECTS_FROM": "flows"}, "OBJECTS_FROM", "needs flows in"),
        ({"HEADS": []}, "HEADS", "at least one"),
        ({"HEADS": ["distance", "distance"]}, "HEADS", "once"),
        ({"HEADS": ["distance", "gradient"]}, "HEADS", "flows"),
        ({"OBJECTS_FROM": "boundary"}, "OBJECTS_FROM", "'stars'"),
        ({"RAYS": 30}, "RAYS", "multiple of 4"),
    ],
)
def test_heads_that_do_not_go_together_are_refused(changes: dict, key: str, said: str) -> None:
    cfg = load_flat_config(KEYS | {f"MODEL.UNET.{name}": value for name, value in changes.items()})
    with pytest.raises(ConfigError, match=rf"MODEL\.UNET\.{key}") as error:
        validate_config(cfg, training=False)
    assert said in str(error.value)


def test_real_nuclei_come_back_from_flows_and_from_stars(shared_data: Callable[[str], Path]) -> None:
    """Of some training images of DSB2018, nearly all nuclei with IoU 0.95 or nearly so."""
    flows, stars = [], []
    with zipfile.ZipFile(shared_data("dsb2018_train.zip")) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("labels/"))[::80]
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))).astype(np.int32)[:256, :256] for name in names]
    for image in images:
        labels = np.unique(image, return_inverse=True)[1].reshape(image.shape).astype(np.int32)
        if not labels.any():
            continue
        mask = labels > 0
        flows.append(share_found(objects_of_flows(centre_flows(labels), mask), labels))
        edge_distance = build().targets(labels)["distance"]
        stars.append(share_found(objects_of_stars(star_distances(labels, 32), edge_distance, mask), labels))
    assert np.mean(flows) >= 0.98
    assert np.mean(stars) >= 0.95
