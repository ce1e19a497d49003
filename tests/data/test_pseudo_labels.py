"""Pseudo-labels are mixed in by their ratio, weighed by their confidence, and pasted from where they are sure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.coco.predictions_parsing import pack_soft_mask
from detseg.config import load_config
from detseg.data.loader import LoaderOptions, TrainingStream
from detseg.data.pseudo_labels import PseudoLabels, sure_objects
from detseg.data.sampling import EpochOrder, MixedOrder
from detseg.engine.validation import validate_config
from detseg.errors import ConfigError, DataError
from detseg.structures.label_layers import LabelLayers

SCORES = (0.95, 0.6, 0.3)  # of the three objects of every image; the second one is of the rare class
QUALITIES = (0.8, None, 0.4)


def write_set(path: Path, count: int, first: int, *, pseudo: bool) -> CocoDataset:
    """Gray images whose intensity is their number from `first` on, with three squares each."""
    path.parent.mkdir(exist_ok=True)
    labels = np.zeros((32, 48), np.int32)
    for number in range(3):
        labels[8:20, 16 * number + 2 : 16 * number + 12] = number + 1
    rles = LabelLayers.from_label_image(labels).to_rles()
    rows, annotations = [], []
    for number in range(first, first + count):
        name = f"{path.stem}_{number}.png"
        Image.fromarray(np.full((32, 48), number, dtype=np.uint8)).save(path.parent / name)
        rows.append({"id": number, "file_name": name, "height": 32, "width": 48})
        new = [*annotations_of(rles, [1, 2, 1], image_id=number, first_id=len(annotations) + 1)]
        for one, score, quality in zip(new, SCORES, QUALITIES, strict=True):
            if pseudo:
                one |= {"score": score, "quality": quality, "decision": "kept"}
        if pseudo:
            # The left half of the first square is sure, the right half is not.
            probability = np.full((12, 10), 255, np.uint8)
            probability[:, 5:] = 128
            new[0]["soft_mask"] = {**pack_soft_mask(probability), "at": [2, 8]}
        annotations += new
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    write_coco(path, images=rows, annotations=annotations, categories=categories)
    return CocoDataset.load(path)


@pytest.fixture
def sets(tmp_path: Path) -> list[CocoDataset]:
    labelled = write_set(tmp_path / "labelled.json", 3, 10, pseudo=False)
    return [labelled, write_set(tmp_path / "pseudo.json", 8, 100, pseudo=True)]


def config_of(sets: list[CocoDataset], *words: str):
    fixed = [f"DATASETS.TRAIN=[{sets[0].name!r}]", f"DATASETS.PSEUDO=[{sets[1].name!r}]", "MODEL.PIXEL_MEAN=[0.0]"]
    fixed += ["INPUT.CROP.ENABLED=False", "INPUT.MIN_SIZE_TRAIN=[0]", "INPUT.RANDOM_FLIP=none", "SEED=1"]
    return load_config(None, [*fixed, *words])


def stream_of(sets: list[CocoDataset], *words: str) -> TrainingStream:
    options = LoaderOptions.from_config(config_of(sets, *words))
    return TrainingStream.build(options, CocoDataset.concatenate(sets), 1)


def is_pseudo(sample) -> bool:
    return sample.file_name.startswith("pseudo")


@pytest.mark.parametrize("ratio", [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_every_batch_has_the_ratio(sets: list[CocoDataset], ratio: tuple[int, int]) -> None:
    stream = stream_of(sets, f"DATASETS.PSEUDO_RATIO={list(ratio)}")
    whole = sum(ratio)
    for batch in range(6):
        names = [stream.file_name(position) for position in range(batch * whole, (batch + 1) * whole)]
        assert sum(name.split("/")[-1].startswith("pseudo") for name in names) == ratio[1]


def test_both_kinds_come_in_whole_epochs_of_their_own() -> None:
    order = MixedOrder((EpochOrder(3, 5), EpochOrder(8, 5, stream=9)), (np.arange(3), np.arange(3, 11)), (1, 1))
    drawn = [order[position] for position in range(2 * 3 * 8)]
    assert np.bincount(drawn).tolist() == [8] * 3 + [3] * 8
    assert [order[position] for position in (40, 3, 17)] == [drawn[position] for position in (40, 3, 17)]


def test_labelled_images_are_as_without_pseudo_labels(sets: list[CocoDataset]) -> None:
    """What is done to pseudo-labels changes nothing of a labelled image."""
    words = ("DATASETS.PSEUDO_CONFIDENCE=[class, pixels]", "INPUT.PSEUDO.RANDOM_CONTRAST=0.5")
    for sample in map(stream_of(sets, *words).__getitem__, range(8)):
        if is_pseudo(sample):
            continue
        assert (sample.weight, sample.object_weights, sample.certainty) == (1.0, None, None)
        assert len(np.unique(sample.image)) == 1


def test_confidence_becomes_weights(sets: list[CocoDataset]) -> None:
    words = "DATASETS.PSEUDO_CONFIDENCE=[class, mask, pixels]", "DATASETS.LOSS_WEIGHTS=[1.0, 0.5]"
    sample = next(filter(is_pseudo, map(stream_of(sets, *words).__getitem__, range(8))))
    assert sample.weight == 0.5
    expected = np.array([[0.95, 1, 0.8], [0.6, 1, 0.6], [0.3, 1, 0.4]])  # no quality: the score
    np.testing.assert_allclose(sample.object_weights, expected, rtol=1e-6)
    assert (sample.certainty[8:20, 2:7] == 255).all()
    assert (sample.certainty[8:20, 7:12] == 1).all()  # |2 * 128 - 255|
    sample.certainty[8:20, 2:12] = 255
    assert (sample.certainty == 255).all()


def test_the_cache_gives_the_same_weights(sets: list[CocoDataset]) -> None:
    words = "DATASETS.PSEUDO_CONFIDENCE=[box, pixels]", "DATASETS.LOSS_WEIGHTS=[1.0, 0.25]"
    plain, cached = stream_of(sets, *words), stream_of(sets, *words, "DATALOADER.CACHE=memory")
    for position in (*range(22), *range(22)):
        first, second = plain[position], cached[position]
        assert first.weight == second.weight
        np.testing.assert_array_equal(first.object_weights, second.object_weights)
        np.testing.assert_array_equal(first.certainty, second.certainty)


def test_only_images_of_pseudo_labels_have_a_lighter_background(sets: list[CocoDataset]) -> None:
    for words in (["DATALOADER.CACHE=memory"], []):
        stream = stream_of(sets, "DATASETS.PSEUDO_BACKGROUND=0.25", *words)
        for sample in map(stream.__getitem__, range(12)):
            assert sample.background_weight == (0.25 if is_pseudo(sample) else 1.0)


def test_stronger_changes_are_of_pseudo_labelled_images(sets: list[CocoDataset]) -> None:
    plain, strong = stream_of(sets), stream_of(sets, "INPUT.PSEUDO.RANDOM_BRIGHTNESS=0.3")
    for position in range(12):
        first, second = plain[position], strong[position]
        assert (first.image == second.image).all() == (not is_pseudo(first))


def test_pasted_objects_are_the_sure_ones(sets: list[CocoDataset]) -> None:
    paste = ["INPUT.COPY_PASTE.PROBABILITY=1.0", "INPUT.COPY_PASTE.SOURCES=[pseudo]", "INPUT.COPY_PASTE.PLACE=free"]
    stream = stream_of(sets, *paste, "INPUT.COPY_PASTE.PSEUDO_SCORE=0.5", "INPUT.COPY_PASTE.MAX_OVERLAP=1.0")
    seen = set()
    for sample in map(stream.__getitem__, range(20)):
        pasted = sample.image[(sample.image >= 100)] if not is_pseudo(sample) else []
        seen |= {int(value) for value in pasted}
    assert seen, "objects of pseudo-labelled images are pasted upon labelled ones"
    sure = sure_objects(sets[1], 0.5)
    assert sure.objects_per_image().tolist() == [[1, 1]] * 8
    assert sure_objects(sets[1], 0.99).num_objects == 0
    assert sets[1].num_objects == 24, "the data set itself stays"


def test_train_stands_for_labelled_images_in_copy_paste(sets: list[CocoDataset]) -> None:
    paste = ["INPUT.COPY_PASTE.PROBABILITY=1.0", "INPUT.COPY_PASTE.PLACE=free", "INPUT.COPY_PASTE.MAX_OVERLAP=1.0"]
    for sample in map(stream_of(sets, *paste).__getitem__, range(20)):
        values = np.unique(sample.image)
        assert (values < 100).any() if is_pseudo(sample) else (values < 100).all(), "pasted from labelled images"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["DATASETS.PSEUDO_RATIO=[1]"], "PSEUDO_RATIO"),
        (["DATASETS.PSEUDO_RATIO=[1, 0]"], "at least 1"),
        (["DATASETS.LOSS_WEIGHTS=[1.0]"], "expected 2 values"),
        (["DATASETS.PSEUDO_CONFIDENCE=[score]"], "'class', 'box', 'mask', 'pixels'"),
        (["DATASETS.PSEUDO=[]", "DATASETS.PSEUDO_CONFIDENCE=[class]"], "there are no pseudo-labels"),
        (["DATASETS.PSEUDO=[]", "DATASETS.PSEUDO_BACKGROUND=0.5"], "there are no pseudo-labels"),
        (["DATASETS.PSEUDO_BACKGROUND=1.5"], "PSEUDO_BACKGROUND"),
        (["DATASETS.PSEUDO=[]", "INPUT.COPY_PASTE.SOURCES=[pseudo]"], "stands for DATASETS.PSEUDO, which is empty"),
        (["INPUT.PSEUDO.ALBUMENTATIONS=[{name: Bluur}]"], "Bluur"),
    ],
)
def test_settings_that_mean_nothing_are_refused(sets: list[CocoDataset], words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        LoaderOptions.from_config(config_of(sets, *words))


def test_who_counts_all_labels_alike_refuses_weights(sets: list[CocoDataset]) -> None:
    weights = ["DATASETS.PSEUDO_CONFIDENCE=[class]", "DATASETS.PSEUDO_BACKGROUND=0.5"]
    torchvision = ["MODEL.META_ARCHITECTURE=TorchvisionMaskRCNN", "MODEL.MASK_ON=True", "MODEL.PIXEL_STD=[1.0]"]
    with pytest.raises(ConfigError) as error:
        validate_config(config_of(sets, *weights, *torchvision))
    assert "DATASETS.PSEUDO_CONFIDENCE" in str(error.value)
    assert "TorchvisionMaskRCNN does not support label weights; leave it at 1.0" in str(error.value)


def test_a_place_for_the_fold_needs_a_fold(sets: list[CocoDataset]) -> None:
    with pytest.raises(ConfigError, match="train with --fold"):
        validate_config(config_of(sets, "DATASETS.PSEUDO=['pseudo_{fold}.json']", "MODEL.PIXEL_MEAN=[0.0, 0.0, 0.0]"))


def test_labels_without_scores_have_no_confidence(sets: list[CocoDataset]) -> None:
    options = PseudoLabels(names=("a",), confidence=("class",), num_sets=0)
    with pytest.raises(DataError, match=r"labelled_10.png, annotation 1: its score is None; expected a number from 0"):
        options.weigh_objects(sets[0].read_sample(0), sets[0], 0)


@pytest.mark.parametrize(
    "change", [{"at": [40, 8]}, {"at": None}, {"size": [12, 9]}, {"zlib": "AAAA"}, {"at": [-1, 8]}]
)
def test_a_broken_soft_mask_is_refused(sets: list[CocoDataset], change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = sets[1].object_fields(0)
    fields[0]["soft_mask"] = {**fields[0]["soft_mask"], **change}
    monkeypatch.setattr(sets[1], "object_fields", lambda index: fields)
    options = PseudoLabels(names=("a",), confidence=("pixels",), num_sets=0)
    with pytest.raises(DataError, match="soft mask"):
        options.weigh_objects(sets[1].read_sample(0), sets[1], 0)


def test_fields_are_those_of_objects(sets: list[CocoDataset]) -> None:
    crowd = sets[1].table.crowd.copy()
    crowd[1] = True
    table = dataclasses.replace(sets[1].table, crowd=crowd)
    changed = dataclasses.replace(sets[1], table=table)
    assert [one["score"] for one in changed.object_fields(0)] == [0.95, 0.3]
    assert len(changed.read_sample(0).classes) == 2
