"""Samples are a function of seed and position; errors in workers come out as messages that name the file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.config import load_config
from detseg.data import sample_cache as sample_reader
from detseg.data.augment.policy import TrainPolicy
from detseg.data.augment.random_geometry import RandomCrop
from detseg.data.loader import LoaderOptions, TrainingStream, TrainLoader, build_train_loader
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sampling import EpochOrder, balancing_weights, without_empty_images
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

NUM_IMAGES = 7


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    """Seven small images; the last has no object, one is of the group rare."""
    rng = np.random.default_rng(0)
    rows, annotations = [], []
    for index in range(NUM_IMAGES):
        labels = np.zeros((48, 64), np.int32)
        for label in range(1, 12 if index < NUM_IMAGES - 1 else 1):
            y, x = rng.integers(0, 40), rng.integers(0, 56)
            labels[y : y + 8, x : x + 8] = label
        rles = LabelLayers.from_label_image(labels).to_rles()
        name = f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (48, 64), dtype=np.uint8)).save(tmp_path / name)
        group = "rare" if index == 2 else "common"
        rows.append({"id": index + 1, "file_name": name, "height": 48, "width": 64, "group": group})
        classes = [2 if index == 4 else 1] * len(rles)
        annotations += annotations_of(rles, classes, image_id=index + 1, first_id=len(annotations) + 1)
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    write_coco(tmp_path / "set.json", images=rows, annotations=annotations, categories=categories)
    return CocoDataset.load(tmp_path / "set.json")


def stream_of(dataset: CocoDataset, seed: int = 3) -> TrainingStream:
    policy = TrainPolicy(crop=RandomCrop("absolute", (32, 32)), flip="both", rotate90=True, scales=(0.7, 1.5))
    return TrainingStream(dataset, preprocess=ImagePreprocess(scaling="percentile"), policy=policy, seed=seed)


def assert_same(first: Sample, second: Sample) -> None:
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.layers.layers, second.layers.layers)
    np.testing.assert_array_equal(first.classes, second.classes)
    assert first.file_name == second.file_name


def test_a_sample_depends_on_seed_and_position_only(dataset: CocoDataset) -> None:
    stream = stream_of(dataset)
    forwards = [stream[position] for position in range(20)]
    again = stream_of(dataset)
    for position in reversed(range(20)):
        assert_same(again[position], forwards[position])
    assert forwards[0].image.shape == (32, 32, 3)
    other = stream_of(dataset, seed=4)
    assert any(not np.array_equal(other[position].image, forwards[position].image) for position in range(3))


@pytest.mark.parametrize("context", [None, "spawn"])
def test_workers_give_the_samples_that_this_process_gives(
    dataset: CocoDataset, context: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a large data set: the annotations go to the workers through a file.
    monkeypatch.setattr(sample_reader, "PICKLED_AT_MOST", 0)
    stream = stream_of(dataset)
    expected = list(TrainLoader(stream, batch_size=4, start_position=0, total=22))
    assert [len(batch) for batch in expected] == [4, 4, 4, 4, 4, 2]
    random_state = torch.get_rng_state()
    batches = list(TrainLoader(stream, batch_size=4, start_position=0, total=22, workers=2, context=context))
    assert torch.equal(torch.get_rng_state(), random_state), "the loader leaves the global generator alone"
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
    for batch, other in zip(batches, expected, strict=True):
        for one, two in zip(batch, other, strict=True):
            assert_same(one, two)


def test_starting_in_the_middle_goes_on_with_the_same_samples(dataset: CocoDataset) -> None:
    stream = stream_of(dataset)
    whole = [sample for batch in TrainLoader(stream, batch_size=4, start_position=0, total=24) for sample in batch]
    rest = [sample for batch in TrainLoader(stream, batch_size=4, start_position=8, total=24) for sample in batch]
    assert len(rest) == 16
    for one, two in zip(rest, whole[8:], strict=True):
        assert_same(one, two)
    assert len(TrainLoader(stream, batch_size=4, start_position=24, total=24)) == 0
    assert list(TrainLoader(stream, batch_size=4, start_position=24, total=24)) == []


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    order = EpochOrder(50, seed=1)
    epochs = [[order[position] for position in range(50 * epoch, 50 * epoch + 50)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    assert epochs[0] != epochs[1] != epochs[2]
    assert [EpochOrder(50, seed=1)[position] for position in (120, 3, 77)] == [order[120], order[3], order[77]]


def test_weighted_orders_show_images_as_often_as_their_weights_say() -> None:
    weights = np.array([1.0, 1.0, 2.0, 6.0])
    order = EpochOrder(4, seed=0, weights=weights)
    counts = np.bincount([order[position] for position in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, weights / 10, atol=0.03)
    assert {order[position] for position in range(4)} >= {3}, "a share of 2.4 of 4 is at least 2 times in every epoch"


def test_balancing_by_a_field_and_by_category(dataset: CocoDataset) -> None:
    assert balancing_weights(dataset, "", 1.0) is None
    assert balancing_weights(dataset, "group", 0.0) is None
    weights = balancing_weights(dataset, "group", 1.0)
    assert weights[2] == pytest.approx(weights[[0, 1, 3, 4, 5, 6]].sum())
    half = balancing_weights(dataset, "group", 0.5)
    np.testing.assert_allclose(half**2, weights)
    by_class = balancing_weights(dataset, "category", 1.0)
    np.testing.assert_allclose(by_class, [0.2, 0.2, 0.2, 0.2, 1.0, 0.2, 0.2])
    with pytest.raises(DataError, match=r"BALANCE_BY is 'kind'.*fields are: group"):
        balancing_weights(dataset, "kind", 1.0)


def test_images_without_objects_are_left_out_on_demand_and_trained_with_otherwise(dataset: CocoDataset) -> None:
    assert [record.file_name for record in without_empty_images(dataset).images] == [f"{i}.png" for i in range(6)]
    with pytest.raises(DataError, match="no image has an object"):
        without_empty_images(dataset.select([6]))
    stream = stream_of(dataset.select([6]))
    sample = stream[0]
    assert (len(sample.layers), len(sample.classes)) == (0, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(dataset: CocoDataset, workers: int) -> None:
    path = dataset.images[3].path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"3\.png.*truncated") as caught:
        list(TrainLoader(stream_of(dataset), batch_size=2, start_position=0, total=14, workers=workers))
    assert "Traceback" not in str(caught.value)


class FailingPolicy(TrainPolicy):
    """Raises what is no error of ours, or ends its process, at an image."""

    def geometry(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if sample.file_name == "5.png":
            if os.environ.get("DETSEG_TEST_KILL"):
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("by nothing")
        return sample


@pytest.mark.parametrize("workers", [0, 1])
def test_any_other_failure_becomes_a_message_with_the_file(dataset: CocoDataset, workers: int) -> None:
    stream = TrainingStream(dataset, preprocess=ImagePreprocess(), policy=FailingPolicy(), seed=0)
    with pytest.raises(DataError, match=r"5\.png.*ZeroDivisionError: by nothing"):
        list(TrainLoader(stream, batch_size=2, start_position=0, total=14, workers=workers))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_worker_becomes_a_message_with_the_files(
    dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETSEG_TEST_KILL", "1")
    stream = TrainingStream(dataset, preprocess=ImagePreprocess(), policy=FailingPolicy(), seed=0)
    with pytest.raises(DataError, match=r"(?s)worker process.*NUM_WORKERS.*5\.png"):
        list(TrainLoader(stream, batch_size=2, start_position=0, total=14, workers=1))


def test_a_worker_that_dies_while_a_checkpoint_is_written_is_told_of(dataset: CocoDataset) -> None:
    stream = TrainingStream(dataset, preprocess=ImagePreprocess(), policy=FailingPolicy(), seed=0)
    loader = TrainLoader(stream, batch_size=2, start_position=0, total=14, workers=1)

    def write(failure: str) -> None:
        try:  # PyTorch's error strikes in the middle of the file, and the archive complains when it is closed
            raise RuntimeError(failure)
        finally:
            raise RuntimeError("unexpected pos 95680 vs 95576")

    with pytest.raises(DataError, match="a worker process of the data loader died"), loader.watched():
        write("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="unexpected pos"), loader.watched():
        write("no space left on device")


def test_build_from_config_checks_the_images_first(dataset: CocoDataset) -> None:
    words = ["SOLVER.IMS_PER_BATCH=3", "DATALOADER.NUM_WORKERS=0", "INPUT.MIN_SIZE_TRAIN=[32]"]
    options = LoaderOptions.from_config(load_config(None, [*words, "DATALOADER.FILTER_EMPTY_ANNOTATIONS=True"]))
    loader = build_train_loader(options, dataset, 0, 12, seed=9)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [3, 3, 3, 3]
    assert {sample.image.shape for batch in batches for sample in batch} == {(32, 43, 3)}
    assert len({sample.file_name for batch in batches for sample in batch}) == 6
    dataset.images[1].path.unlink()
    with pytest.raises(DataError, match=r"1 of 7 images are missing"):
        build_train_loader(options, dataset, 0, 12, seed=9)
