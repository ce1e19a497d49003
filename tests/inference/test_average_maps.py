"""Views, models and tiles of models that give maps: averaged before objects are made of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiled_scenes import assert_same_objects, draw_disks, label_image
from torch import nn

from detseg.data.preprocess import ImagePreprocess, TestSizeOptions
from detseg.errors import ConfigError
from detseg.inference.combine import combine
from detseg.inference.image_model import ImageModel
from detseg.inference.predictor import Predictor
from detseg.inference.tiling import Tiling
from detseg.inference.tta import AVERAGE_MAPS, MERGE_THEN_MASK, TestTimeAugmentation
from detseg.inference.views import SYMMETRIES, parse_views
from detseg.models.bottom_up.decoding import predictions_of_labels
from detseg.models.bottom_up.seeds import watershed_from_peaks
from detseg.models.map_segmenter import MapSegmenter


class Brightness(MapSegmenter):
    """Says of every pixel that it is an object as it is bright. `bias`: added to what it says of the image's left half
    as the network sees it, which views must turn back. class_maps: what it says of two classes.
    """

    def __init__(self, bias: float = 0.0, class_maps: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias, self.class_maps = bias, class_maps
        self.map_names = ("foreground", *(f"class {number}" for number in range(len(class_maps))))

    def forward(self, samples):
        return {"loss": self.scale.sum() * len(samples)}

    def predict_maps(self, images, output_sizes=None):
        maps = []
        for image, size in zip(images, output_sizes or [image.shape[:2] for image in images], strict=True):
            assert image.shape[:2] == size
            foreground = image.astype(np.float32).mean(axis=2) / 255
            foreground[:, : size[1] // 2] += self.bias
            maps.append(np.stack([foreground, *(np.full(size, value, np.float32) for value in self.class_maps)]))
        return maps

    def decode(self, maps, *, soft_masks=False, level=None, limited=True):
        labels = watershed_from_peaks(maps[0], maps[0] >= 0.5, 0.2)
        quality = np.ones(labels.max())
        classes = maps[1:] if self.class_maps else None
        return predictions_of_labels(labels, maps[0], quality, class_maps=classes, soft_masks=soft_masks)


def predictor(model: Brightness, *views: str, classes: tuple[str, ...] = ("cell",), **options) -> Predictor:
    tta = TestTimeAugmentation(parse_views(views or ["none"]), options.pop("mode", "auto"))
    size = TestSizeOptions(min_size=0, max_size=4000)
    return Predictor(ImageModel(model, ImagePreprocess(), size), list(classes), tta=tta, **options)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    rng = np.random.default_rng(3)
    places = [(y, x, rng.uniform(3, 9)) for y in range(15, 150, 30) for x in range(15, 200, 30)]
    return draw_disks(161, 203, places)


def test_all_views_of_a_model_that_turns_with_the_image_give_what_one_gives(scene: np.ndarray) -> None:
    plain = predictor(Brightness())(scene, soft_masks=True)
    assert len(plain) > 20
    for views in (["eight"], [name for name in SYMMETRIES if name != "none"]):
        together = predictor(Brightness(), *views)(scene, soft_masks=True)
        assert together.provenance["tta"] == {"views": list(together.provenance["tta"]["views"]), "mode": AVERAGE_MAPS}
        assert {rle["counts"] for rle in together.rles} == {rle["counts"] for rle in plain.rles}


def test_maps_are_averaged_and_not_objects() -> None:
    """Half of the views see 0.7, the others 0.4 on each side: the mean, 0.55, is an object; a vote would lose it."""
    image = np.full((20, 40), 102, np.uint8)
    both = predictor(Brightness(bias=0.3), "none", "h")(image, soft_masks=True)
    assert len(both) == 1
    assert both.scores[0] == pytest.approx(0.55, abs=1e-6)
    assert both.rles[0]["size"] == [20, 40]
    assert np.unique(both.soft_masks[0]).tolist() == [140]


def test_models_are_averaged_by_weight_and_classes_by_name(scene: np.ndarray) -> None:
    one = predictor(Brightness(class_maps=(0.9, 0.1)), classes=("a", "b"))
    other = predictor(Brightness(class_maps=(0.7, 0.3)), classes=("b", "a"))
    assert set(combine([one, other])(scene).classes) == {0}
    assert set(combine([one, other], weights=[1, 9])(scene).classes) == {1}
    assert combine([one, other])(scene).provenance["tta"]["mode"] == AVERAGE_MAPS


def test_what_cannot_be_averaged_is_refused(scene: np.ndarray) -> None:
    one, other = predictor(Brightness()), predictor(Brightness(class_maps=(1.0,)))
    settings = TestTimeAugmentation(mode=AVERAGE_MAPS)
    with pytest.raises(ConfigError, match="from the same maps, which these do not"):
        combine([one, other], settings=settings)
    assert combine([one, other]).detector.settings.mode == "fuse"
    with pytest.raises(ConfigError, match="merge_then_mask"):
        predictor(Brightness(), "flips", mode=MERGE_THEN_MASK)
    with pytest.raises(ConfigError, match="boxes of some models"):
        combine([one, predictor(Brightness())], boxes_of=[0], masks_of=[1])


@pytest.mark.parametrize("views", [(), ("flips",)])
def test_tiles_give_what_the_whole_image_gives(scene: np.ndarray, views: tuple[str, ...]) -> None:
    whole = predictor(Brightness(), *views)
    tiles = predictor(Brightness(), *views, tiling=Tiling("always", 96, 40))
    assert_same_objects(tiles(scene), label_image(whole(scene)))
