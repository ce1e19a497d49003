"""Large images of models that give maps: their tiles are blended before objects are made, as of the whole image."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiled_scenes import assert_same_objects, draw_disks, label_image

from detseg.coco.dataset import ImageRecord
from detseg.config import load_flat_config
from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.engines.build import build_model
from detseg.images.pixel_source import ArraySource
from detseg.inference import map_tiles
from detseg.inference.image_model import ImageModel
from detseg.inference.map_tiles import BlendedMaps
from detseg.inference.predictor import Predictor
from detseg.inference.tiling import Tiling, make_grid
from detseg.inference.tta import TestTimeAugmentation
from detseg.inference.views import parse_views
from detseg.models.bottom_up.unet import UNet
from detseg.structures.predictions import Predictions

KEYS = {
    "MODEL.MASK_ON": True,
    "MODEL.UNET.ENCODER": "plain",
    "MODEL.UNET.CHANNELS": [6, 4],
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.UNET.THRESHOLD": 0.0,
    "MODEL.PIXEL_STD": [57.4, 57.1, 58.4],
    "TEST.DETECTIONS_PER_IMAGE": -1,
}
SYSTEMS = ("BinaryUNet", "BoundaryUNet", "DistanceUNet")
NEVER = Tiling("never")


class Spied(Predictor):
    """Keeps the maps that objects were made of, and the number of arrays that went through the network."""

    def __init__(self, model: UNet, *views: str, **options) -> None:
        tta = TestTimeAugmentation(parse_views(views or ["none"]))
        size = options.pop("size", TestSizeOptions(min_size=0, max_size=4000))
        super().__init__(ImageModel(model, ImagePreprocess(), size), ["a", "b"], tta=tta, **options)
        self.decoded: list[np.ndarray] = []
        self.seen = 0
        decode, predict_maps = model.decode, model.predict_maps

        def keep(maps, **options):
            self.decoded.append(maps.copy())
            return decode(maps, **options)

        def count(images, sizes=None):
            self.seen += len(images)
            return predict_maps(images, sizes)

        model.decode, model.predict_maps = keep, count


def network(name: str, **changes: object) -> UNet:
    """A network that blurs the image, and says that what is bright belongs to objects."""
    torch.manual_seed(1)
    model = build_model(load_flat_config(KEYS | {"MODEL.META_ARCHITECTURE": name} | changes)).eval()
    with torch.no_grad():
        for part in (model.backbone, model.decoder):
            for weight in (parameter for parameter in part.parameters() if parameter.ndim == 4):
                weight.abs_().div_(weight[0].sum())
        for head, signs in {"foreground": [1], "distance": [1], "pixels": [-2, 1, 0]}.items():
            if head in model.heads:
                weight = model.heads[head].weight
                weight.abs_().div_(weight[0].sum() / 6).mul_(torch.tensor(signs)[:, None, None, None])
                model.heads[head].bias.copy_(torch.tensor(signs) * -2)
    return model


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    rng = np.random.default_rng(3)
    places = [(y, x, rng.uniform(3, 9)) for y in range(12, 265, 22) for x in range(10, 330, 21)]
    return cv2.GaussianBlur(draw_disks(271, 334, places), (0, 0), 1.5)[:, :, None].repeat(3, axis=2)


def same(a: Predictions, b: Predictions) -> None:
    assert_same_objects(a, label_image(b))
    assert np.allclose(a.scores, b.scores, atol=1e-5)
    assert sorted(a.classes.tolist()) == sorted(b.classes.tolist())


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("views", [(), ("eight",)])
def test_tiles_that_share_twice_the_reach_are_the_whole_image(
    name: str, views: tuple[str, ...], scene: np.ndarray
) -> None:
    whole = Spied(network(name), *views, tiling=NEVER)
    reach = whole.detector.reach
    assert reach == 24
    tiled = Spied(network(name), *views, tiling=Tiling("always", 192, 2 * reach))
    expected, found = whole(scene, soft_masks=True), tiled(scene, soft_masks=True)
    assert len(expected) > 100
    assert len(tiled.decoded) == 1
    assert tiled.seen == 6 * len(tiled.tta.views)
    assert np.allclose(tiled.decoded[0], whole.decoded[0], atol=2e-6)
    same(found, expected)
    for soft, other in zip(found.soft_masks, expected.soft_masks, strict=True):
        assert np.abs(soft.astype(int) - other).max() <= 1


def test_views_of_other_sizes_reach_farther() -> None:
    assert Spied(network("BinaryUNet"), "flips", "scale=0.8").detector.reach == 30
    assert Spied(network("BinaryUNet"), "short=300").detector.reach is None


@pytest.mark.parametrize("name", SYSTEMS)
def test_windows_of_an_image_too_large_for_memory_give_its_objects(
    name: str, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every tile is computed once, but for the mean of the whole image, by which the threshold goes, once more."""
    whole = Spied(network(name), tiling=NEVER)(scene)
    monkeypatch.setattr(map_tiles, "LARGEST_WINDOW", 140)
    monkeypatch.setattr(map_tiles, "WINDOW_OVERLAP", 35)
    tiling = Tiling("always", 192, 48)
    for threshold, times in ((0.0, 2), (0.45, 1)):
        tiled = Spied(network(name, **{"MODEL.UNET.THRESHOLD": threshold}), tiling=tiling)
        source = ArraySource(scene, {})
        count = len(tiled.tile_predictor().grid(source))
        found = tiled(scene)
        assert len(tiled.decoded) == len(map_tiles.window_grid(*scene.shape[:2], 2)) == 20
        assert tiled.seen == times * count
        if not threshold:
            same(found, whole)
    # Processes share the windows; what is done is not done again.
    np.save(tmp_path / "a.npy", scene)
    record = ImageRecord(1, "a.npy", tmp_path / "a.npy", 0, 0, {})
    for rank in range(3):
        one = Spied(network(name), tiling=tiling).tile_predictor(state=tmp_path / "state")
        one.predict_share(record, source, (rank, 3))
    last = Spied(network(name), tiling=tiling)
    same(last.tile_predictor(state=tmp_path / "state").predict(record, source), whole)
    assert last.seen == 0


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(2, 40), st.floats(0, 0.5), st.integers(8, 60), st.integers(0, 9)
)
@settings(max_examples=80, deadline=None)
def test_tiles_that_say_the_same_blend_to_the_same_bits(height, width, tile, share, window, seed) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.normal(0, 1, (2, height, width)).astype(np.float32)
    grid = make_grid(height, width, tile=tile, overlap=int(tile * share))
    windows = make_grid(height, width, tile=window, overlap=window // 4)
    reach = None if seed % 2 else (seed, seed)
    blended = BlendedMaps(grid, windows, lambda tiles: (maps[:, t.y0 : t.y1, t.x0 : t.x1] for t in tiles), reach)
    for one in windows:
        assert np.array_equal(blended.of(one), maps[:, one.y0 : one.y1, one.x0 : one.x1])
    assert not blended._kept, "nothing stays in memory"


def test_what_a_tile_says_near_its_cut_side_does_not_count_and_the_rest_fades() -> None:
    grid = make_grid(32, 96, tile=64, overlap=32)
    left, right = np.full((1, 32, 64), 0.2, np.float32), np.full((1, 32, 64), 0.8, np.float32)
    left[..., -8:] = right[..., :8] = np.nan
    (window,) = make_grid(32, 96, tile=96, overlap=0)
    blend = BlendedMaps(grid, [window], lambda tiles: iter([left, right]), (8, 8)).of(window)[0, 5]
    assert np.isnan(blend).any(), "NaN times nothing is NaN: the fade is tested below"
    left[..., -8:] = right[..., :8] = 9
    blend = BlendedMaps(grid, [window], lambda tiles: iter([left, right]), (8, 8)).of(window)[0, 5]
    assert (blend[:40] == np.float32(0.2)).all()
    assert (blend[56:] == np.float32(0.8)).all()
    assert (np.diff(blend[39:57]) > 0).all()
    assert np.diff(blend).max() < 0.06, "no step"


def test_a_network_that_sees_a_tile_otherwise_than_the_image_cuts_no_object(scene: np.ndarray) -> None:
    """Less is shared than the network's reach: maps differ, but objects across seams are whole and come once."""
    tiled = Spied(network("BinaryUNet", **{"MODEL.UNET.CHANNELS": [4, 4, 4]}), tiling=Tiling("always", 96, 32))
    found = tiled(scene)
    assert tiled.detector.reach * 2 > 32
    labels = label_image(found)
    foreground = tiled.decoded[0][0]
    assert np.array_equal(labels > 0, foreground >= foreground.mean(dtype=np.float64)), "decoded once"
