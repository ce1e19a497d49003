"""Repeat factors as Detectron2's, data sets mixed by weight, orders that depend on the seed alone."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detseg.coco.dataset import Category, CocoDataset, ImageRecord
from detseg.coco.records import AnnotationTable
from detseg.config import load_config
from detseg.data.loader import LoaderOptions
from detseg.data.sampling import EpochOrder, SamplingOptions, mix, repeat_factors
from detseg.errors import ConfigError


def dataset_of(classes: list[list[int]], num_classes: int = 3, name: str = "set") -> CocoDataset:
    """A data set whose images have objects of these classes; its annotations have no text."""
    flat = np.array([index for one in classes for index in one], dtype=np.int32)
    nothing = np.zeros(len(flat), dtype=np.int64)
    offsets = np.cumsum([0, *(len(one) for one in classes)])
    crowd, pixels = nothing.astype(bool), np.full(len(flat), 2, np.uint8)
    table = AnnotationTable(np.zeros(0, np.uint8), nothing, nothing, flat, crowd, pixels, offsets)
    images = [ImageRecord(index, f"{index}.png", Path(f"{index}.png"), 8, 8) for index in range(len(classes))]
    return CocoDataset(images, [Category(index + 1, str(index)) for index in range(num_classes)], table, name)


def detectron2_factors(classes: list[list[int]], threshold: float, sqrt: bool) -> list[float]:
    """RepeatFactorTrainingSampler.repeat_factors_from_category_frequency, written down from its description."""
    frequency: dict[int, int] = defaultdict(int)
    for one in classes:
        for category in set(one):
            frequency[category] += 1
    factor = {}
    for category, count in frequency.items():
        ratio = threshold / (count / len(classes))
        factor[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
    return [max((factor[category] for category in set(one)), default=1.0) for one in classes]


@given(st.lists(st.lists(st.integers(0, 2), max_size=4), min_size=1, max_size=30), st.floats(0, 1), st.booleans())
def test_repeat_factors_are_detectron2s(classes: list[list[int]], threshold: float, sqrt: bool) -> None:
    np.testing.assert_allclose(
        repeat_factors(dataset_of(classes), threshold, sqrt), detectron2_factors(classes, threshold, sqrt)
    )


def test_an_epoch_shows_every_image_as_often_as_its_factor() -> None:
    dataset = dataset_of([[0]] * 18 + [[0, 1]] * 2 + [[2]] * 1 + [[]])
    cfg = load_config(None, ["DATALOADER.SAMPLER_TRAIN=RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD=0.4"])
    factors = repeat_factors(dataset, 0.4)
    order = SamplingOptions.from_config(cfg).order(dataset, 3)
    assert order.length == round(factors.sum())
    epochs = 200
    counts = np.bincount([order[position] for position in range(epochs * order.length)], minlength=len(dataset))
    np.testing.assert_allclose(counts / epochs, factors * order.length / factors.sum(), atol=0.1)
    first = np.bincount([order[position] for position in range(order.length)], minlength=len(dataset))
    assert (first >= np.floor(factors * order.length / factors.sum())).all(), "nothing is forgotten in an epoch"
    again = SamplingOptions.from_config(cfg).order(dataset, 3)
    assert [again[position] for position in (500, 7, 88)] == [order[position] for position in (500, 7, 88)]


def test_data_sets_come_by_their_weights_whatever_their_sizes() -> None:
    small, large = dataset_of([[0]] * 4, name="small"), dataset_of([[0]] * 40, name="large")
    joined = CocoDataset.concatenate([small, large])
    keys = ["DATASETS.TRAIN=['small', 'large']", "DATASETS.TRAIN_WEIGHTS=[3, 1]"]
    order = SamplingOptions.from_config(load_config(None, keys)).order(joined, 0)
    drawn = np.array([order[position] for position in range(4400)])
    assert np.mean(drawn < 4) == pytest.approx(0.75, abs=0.01)
    counts = np.bincount(drawn)
    assert counts[:4].min() > 0.95 * counts[:4].max(), "images of one set come equally often"
    plain = SamplingOptions.from_config(load_config(None, keys[:1])).order(joined, 0)
    assert sorted(plain[position] for position in range(44)) == list(range(44))


def test_mixing_stands_above_balancing_within_the_sets() -> None:
    weights = mix(np.array([1.0, 3.0, 1.0, 1.0, 2.0]), np.array([0, 0, 1, 1, 1]), [1.0, 2.0])
    np.testing.assert_allclose(weights, [0.25, 0.75, 0.5, 0.5, 1.0])
    joined = CocoDataset.concatenate([dataset_of([[0], []]), dataset_of([[1], [1]])])
    chosen = joined.select([3, 0])
    assert chosen.origins.tolist() == [1, 0], "images that are left out take their set along"
    np.testing.assert_allclose(mix(None, chosen.origins, [1.0, 4.0]), [4.0, 1.0])


def test_objects_of_some_classes_alone() -> None:
    dataset = dataset_of([[0, 1, 2], [1], [2, 2]])
    dataset.table.crowd[0] = True
    chosen = dataset.with_classes(["2", "new", "0"], drop=True)
    assert chosen.class_names == ["2", "new", "0"]
    assert chosen.objects_per_image().tolist() == [[1, 0, 0], [0, 0, 0], [2, 0, 0]]
    assert chosen.table.crowd.tolist() == [True, False, False, False], "ignored regions stay, of whatever class"
    assert dataset.objects_per_image().tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 2]]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["DATALOADER.SAMPLER_TRAIN=RepeatFactorTrainingSampler"], "REPEAT_THRESHOLD"),
        (
            [
                "DATALOADER.SAMPLER_TRAIN=RepeatFactorTrainingSampler",
                "DATALOADER.REPEAT_THRESHOLD=0.1",
                "DATALOADER.BALANCE_BY=group",
            ],
            "BALANCE_BY",
        ),
        (["DATASETS.TRAIN_WEIGHTS=[1, 2]", "DATASETS.TRAIN=['a']"], "TRAIN_WEIGHTS"),
        (["DATASETS.TRAIN_WEIGHTS=[0.0]", "DATASETS.TRAIN=['a']"], "TRAIN_WEIGHTS"),
        (["DATALOADER.CACHE=ram"], "CACHE"),
        (["DATALOADER.CACHE_SIZE=0"], "CACHE_SIZE"),
    ],
)
def test_keys_that_cannot_be_are_refused(keys: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LoaderOptions.from_config(load_config(None, keys))


def test_an_order_of_another_length_without_weights() -> None:
    order = EpochOrder(4, seed=0, length=6)
    counts = np.bincount([order[position] for position in range(600)], minlength=4)
    np.testing.assert_allclose(counts, 150, atol=50)
