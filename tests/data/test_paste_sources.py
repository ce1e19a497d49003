"""Copy-paste in the training stream: source images by seed and position, groups, an end; whatever the workers."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.config import load_config
from detseg.data import sample_cache as sample_reader
from detseg.data.loader import LoaderOptions, TrainingStream, TrainLoader
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

_SIZE = 64


def write_set(
    folder: Path, name: str, classes: list[str], *, images: int = 6, seed: int = 0, color: bool = False, gray: int = 0
) -> Path:
    """Images whose objects have the gray value `gray` + 10 * (class + 1); the last image has no object.

    Image 0 alone shows the last class. Even images are of the group even.
    """
    rng = np.random.default_rng(seed)
    rows, annotations = [], []
    for index in range(images):
        labels = np.zeros((_SIZE, _SIZE), np.int32)
        for label in range(1, 9 if index < images - 1 else 1):
            y, x = rng.integers(4, _SIZE - 12, 2)
            labels[y : y + 6, x : x + 6] = label
        layers = LabelLayers.from_label_image(labels)
        rare = len(classes) if index == 0 else 1
        values = np.where(labels > 0, gray + 10 * rare, 0).astype(np.uint8)
        file_name = f"{name}_{index}.png"
        Image.fromarray(np.repeat(values[:, :, None], 3, 2) if color else values).save(folder / file_name)
        group = "odd" if index % 2 else "even"
        rows.append({"id": index + 1, "file_name": file_name, "height": _SIZE, "width": _SIZE, "group": group})
        rles = layers.to_rles()
        annotations += annotations_of(rles, [rare] * len(rles), image_id=index + 1, first_id=len(annotations) + 1)
    path = folder / f"{name}.json"
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(classes)]
    write_coco(path, images=rows, annotations=annotations, categories=categories)
    return path


@pytest.fixture
def train(tmp_path: Path) -> CocoDataset:
    return CocoDataset.load(write_set(tmp_path, "train", ["common", "rare"]))


def stream_of(dataset: CocoDataset, *overrides: str) -> TrainingStream:
    keys = [
        "INPUT.MIN_SIZE_TRAIN=[0]",
        "INPUT.RANDOM_FLIP=both",
        "MODEL.ROI_HEADS.NUM_CLASSES=2",
        "INPUT.COPY_PASTE.PROBABILITY=1.0",
        "INPUT.COPY_PASTE.PLACE=free",
        *overrides,
    ]
    return TrainingStream.build(LoaderOptions.from_config(load_config(None, keys)), dataset, 5)


def assert_same(one: Sample, two: Sample) -> None:
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.layers.layers, two.layers.layers)
    np.testing.assert_array_equal(one.classes, two.classes)


def pasted(stream: TrainingStream, positions: range = range(12)) -> list[int]:
    """How many objects more a sample has than without copy-paste."""
    plain = stream_of(stream.dataset, "INPUT.COPY_PASTE.PROBABILITY=0")
    return [len(stream[position].layers) - len(plain[position].layers) for position in positions]


def test_a_sample_with_pasted_objects_depends_on_seed_and_position_only(train: CocoDataset) -> None:
    stream = stream_of(train)
    forwards = [stream[position] for position in range(14)]
    again = stream_of(train)
    for position in reversed(range(14)):
        assert_same(again[position], forwards[position])
    assert sum(pasted(stream)) > 20
    assert all(sample.image.dtype == np.uint8 for sample in forwards)


def test_workers_paste_what_this_process_pastes(
    train: CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_reader, "PICKLED_AT_MOST", 0)
    other = write_set(tmp_path, "other", ["common"], seed=3)
    stream = stream_of(train, f"INPUT.COPY_PASTE.SOURCES=['train', 'image', '{other.as_posix()}']")
    sent = pickle.loads(pickle.dumps(stream))  # what a worker gets that is started and not forked
    assert sent.pasting.sources[0].reader is sent.reader, "one copy of the training data"
    batches = list(TrainLoader(stream, batch_size=2, start_position=4, total=14, workers=2))
    assert sum(map(len, batches)) == 10
    for number, batch in enumerate(batches):
        for within, sample in enumerate(batch):
            assert_same(sample, stream[4 + 2 * number + within])
            assert_same(sample, sent[4 + 2 * number + within])


def test_without_a_draw_the_sample_is_as_without_copy_paste(train: CocoDataset) -> None:
    sometimes = stream_of(train, "INPUT.COPY_PASTE.PROBABILITY=0.5", "INPUT.RANDOM_CONTRAST=0.5")
    never = stream_of(train, "INPUT.COPY_PASTE.PROBABILITY=0", "INPUT.RANDOM_CONTRAST=0.5")
    assert never.pasting is None
    same = 0
    for position in range(24):
        one, two = sometimes[position], never[position]
        if len(one.layers) == len(two.layers):
            assert_same(one, two)
            same += 1
    assert 4 < same < 20


def test_copy_paste_ends_after_its_last_iteration(train: CocoDataset) -> None:
    keys = ("SOLVER.IMS_PER_BATCH=2", "SOLVER.ACCUMULATE=3", "INPUT.COPY_PASTE.LAST_ITER=2")
    stream = stream_of(train, *keys)
    counts = pasted(stream, range(24))
    assert all(counts[:12]), "two iterations of six images"
    assert not any(counts[12:])


def test_objects_of_other_data_sets_come_by_the_name_of_their_class(train: CocoDataset, tmp_path: Path) -> None:
    other = write_set(tmp_path, "other", ["strange", "rare"], gray=100)
    stream = stream_of(train, f"INPUT.COPY_PASTE.SOURCES=['{other.as_posix()}']")
    plain = stream_of(train, "INPUT.COPY_PASTE.PROBABILITY=0")
    seen = 0
    for position in range(12):
        sample, before = stream[position], len(plain[position].layers)
        for index in range(before, len(sample.layers)):
            assert sample.classes[index] == 1
            assert (sample.image[sample.layers.mask(index)] == 120).all(), "image 0 of the other set, the second class"
            seen += 1
    assert seen > 10
    strangers = write_set(tmp_path, "strangers", ["strange"])
    with pytest.raises(DataError, match=r"strangers\.json.*classes are strange; expected common, rare"):
        stream_of(train, f"INPUT.COPY_PASTE.SOURCES=['{strangers.as_posix()}']")


def test_sources_come_as_often_as_their_weights_say(train: CocoDataset, tmp_path: Path) -> None:
    other = write_set(tmp_path, "other", ["common"], gray=100)
    stream = stream_of(
        train,
        f"INPUT.COPY_PASTE.SOURCES=['train', '{other.as_posix()}']",
        "INPUT.COPY_PASTE.SOURCE_WEIGHTS=[1, 3]",
    )
    from_other = [(stream[position].image > 100).any() for position in range(60)]
    assert np.mean(from_other) == pytest.approx(0.75, abs=0.14)


def test_the_same_image_as_source(train: CocoDataset) -> None:
    stream = stream_of(train, "INPUT.COPY_PASTE.SOURCES=['image']")
    counts = pasted(stream)
    names = [stream.file_name(position) for position in range(12)]
    assert sum(counts) > 20
    assert all(count == 0 for count, name in zip(counts, names, strict=True) if name.endswith("_5.png"))
    rare = [stream[position] for position in range(12) if names[position].endswith("_0.png")]
    assert all((sample.classes == 1).all() for sample in rare)


def test_source_images_of_the_same_group_only(train: CocoDataset, tmp_path: Path) -> None:
    stream = stream_of(train, "INPUT.COPY_PASTE.GROUP_BY=group", "INPUT.COPY_PASTE.BALANCE_POWER=1.0")
    for position in range(24):
        sample = stream[position]
        if sample.metadata["group"] == "odd":
            assert not (sample.classes == 1).any(), "the rare class is in an image of the group even"
    with pytest.raises(DataError, match=r"GROUP_BY is 'plate'.*group"):
        stream_of(train, "INPUT.COPY_PASTE.GROUP_BY=plate")


def test_rare_classes_are_pasted_more_often(train: CocoDataset) -> None:
    def share(power: float) -> float:
        stream = stream_of(train, f"INPUT.COPY_PASTE.BALANCE_POWER={power}", "INPUT.COPY_PASTE.MAX_OBJECTS=4")
        plain = stream_of(train, "INPUT.COPY_PASTE.PROBABILITY=0")
        classes = [stream[n].classes[len(plain[n].layers) :] for n in range(30)]
        return float(np.concatenate(classes).mean())

    assert share(0.0) < 0.35
    assert share(1.0) > 0.35


def test_gray_images_beside_colour(tmp_path: Path) -> None:
    gray = CocoDataset.load(write_set(tmp_path, "gray", ["common"]))
    color = write_set(tmp_path, "color", ["common"], color=True, gray=50)
    stream = stream_of(gray, f"INPUT.COPY_PASTE.SOURCES=['{color.as_posix()}']", "MODEL.ROI_HEADS.NUM_CLASSES=1")
    assert all(stream[position].image.shape[2] == 3 for position in range(6))
    assert sum(pasted(stream)) > 10


def test_nothing_to_paste_is_said_before_the_training(tmp_path: Path) -> None:
    empty = write_set(tmp_path, "empty", ["common", "rare"], images=1)
    with pytest.raises(DataError, match="no image has an object"):
        stream_of(CocoDataset.load(empty))
