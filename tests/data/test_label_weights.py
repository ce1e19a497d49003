"""The weights of labels follow their objects and pixels through everything that happens to a training sample."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detseg.data.augment.canvas import Canvas, SourceImage
from detseg.data.augment.geometric import GeometricMap, map_sample
from detseg.data.sample_cache import pack_sample, read_sample
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample


def sample() -> Sample:
    """Three objects from left to right with the weights 0.1, 0.2, 0.3; the certainty of a pixel is its column."""
    layers = np.zeros((1, 20, 60), dtype=np.int32)
    for number in range(3):
        layers[0, 5:15, 20 * number + 5 : 20 * number + 15] = number + 1
    weights = np.repeat(np.array([[0.1], [0.2], [0.3]], dtype=np.float32), 3, axis=1)
    certainty = np.tile(np.arange(60, dtype=np.uint8), (20, 1))
    image = np.zeros((20, 60, 1), dtype=np.uint8)
    return Sample(image, LabelLayers(layers, 3), np.array([0, 1, 0]), object_weights=weights, certainty=certainty)


def test_a_crop_keeps_the_weights_of_what_it_shows() -> None:
    cut = map_sample(sample(), GeometricMap.identity(20, 60).window(0, 18, 20, 42).flip_horizontal())
    assert cut.classes.tolist() == [1, 0]
    assert cut.object_weights[:, 0].tolist() == pytest.approx([0.2, 0.3])
    assert cut.certainty[0].tolist() == list(range(59, 17, -1))


def test_what_is_seen_beyond_the_image_is_not_unsure() -> None:
    padded = map_sample(sample(), GeometricMap.identity(20, 60).window(0, -5, 20, 65))
    assert (padded.certainty[:, :5] == 255).all()
    assert (padded.certainty[:, 5:] == sample().certainty).all()


def test_pasted_objects_bring_their_weights() -> None:
    plain = Sample(np.zeros((20, 60, 1), np.uint8), LabelLayers.empty(20, 60))
    source = SourceImage(sample())
    canvas = Canvas(plain, source)
    canvas.paste(source.cut_out(2), 5, 5)
    pasted = canvas.finish(0.3)
    assert pasted.object_weights.tolist() == [pytest.approx([0.3] * 3)]
    inside = pasted.layers.layers[0] == 1
    assert (pasted.certainty[inside].reshape(10, 10) == np.arange(45, 55)).all()
    assert (pasted.certainty[~inside] == 255).all()
    assert plain.certainty is None


def test_sure_objects_pasted_on_an_unsure_image_are_sure() -> None:
    target = sample()
    source = SourceImage(dataclasses.replace(sample(), object_weights=None, certainty=None))
    canvas = Canvas(target, source)
    canvas.paste(source.cut_out(0), 5, 25)  # upon the second object, of which nothing is left
    pasted = canvas.finish(0.3)
    assert pasted.object_weights[:, 0].tolist() == pytest.approx([0.1, 0.3, 1.0])
    assert (pasted.certainty[5:15, 25:35] == 255).all()
    assert (pasted.certainty[:5] == target.certainty[:5]).all()


def test_plain_labels_stay_without_weights() -> None:
    plain = dataclasses.replace(sample(), object_weights=None, certainty=None)
    canvas = Canvas(plain, SourceImage(plain))
    canvas.paste(SourceImage(plain).cut_out(0), 5, 25)
    assert canvas.finish(0.3).object_weights is None
    assert canvas.finish(0.3).certainty is None


def test_the_cache_keeps_them(tmp_path) -> None:
    np.save(tmp_path / "a.npy", pack_sample(sample()))
    found = read_sample(tmp_path / "a.npy")
    assert (found.object_weights == sample().object_weights).all()
    assert (found.certainty == sample().certainty).all()


def test_weights_of_other_objects_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 objects, but weights with the shape \(2, 3\)"):
        dataclasses.replace(sample(), object_weights=np.ones((2, 3), np.float32))
