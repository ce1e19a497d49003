"""Cached samples are the samples; what changed is read again; the limit holds; several processes share one folder."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.config import load_config
from detseg.data.loader import LoaderOptions, TrainingStream, TrainLoader
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sample_cache import SampleCache, SampleReader, pack_sample, read_sample
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample


def write_set(folder: Path, *, images: int = 5, moved: int = 0, crowd: bool = True) -> Path:
    rows, annotations = [], []
    for index in range(images):
        labels = np.zeros((40, 50), np.int32)
        labels[5 + moved : 15 + moved, 5:20], labels[20:30, 20 + index : 45] = 1, 2
        rng = np.random.default_rng(index)
        path = folder / f"{index}.png"
        if not path.exists():
            Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(path)
        rows.append({"id": index + 1, "file_name": path.name, "height": 40, "width": 50, "plate": f"p{index}"})
        rles = LabelLayers.from_label_image(labels).to_rles()
        annotations += annotations_of(rles, [1, 1], image_id=index + 1, first_id=len(annotations) + 1)
        annotations[-1]["iscrowd"] = int(crowd and index == 1)
    path = folder / "set.json"
    categories = [{"id": 1, "name": "cell"}]
    write_coco(path, images=rows, annotations=annotations, categories=categories, overwrite=True)
    return path


def assert_same(one: Sample, two: Sample) -> None:
    assert one.image.dtype == two.image.dtype
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.layers.layers, two.layers.layers)
    np.testing.assert_array_equal(one.classes, two.classes)
    assert (one.ignore is None) == (two.ignore is None)
    if one.ignore is not None:
        np.testing.assert_array_equal(one.ignore, two.ignore)
    assert (one.image_id, one.file_name, one.metadata) == (two.image_id, two.file_name, two.metadata)


class Counted(CocoDataset):
    """Counts the images that are decoded."""

    decoded = 0

    def read_sample(self, index: int) -> Sample:
        self.decoded += 1
        return super().read_sample(index)


def counted(path: Path) -> Counted:
    loaded = CocoDataset.load(path)
    return Counted(loaded.images, loaded.categories, loaded.table, loaded.name)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_cached_samples_are_the_samples(tmp_path: Path, kind: str) -> None:
    dataset = counted(write_set(tmp_path))
    limit = 10**7
    cache = SampleCache.in_memory(limit) if kind == "memory" else SampleCache(tmp_path / "cache", limit)
    preprocess = ImagePreprocess(scaling="percentile")
    reader, plain = SampleReader(dataset, preprocess, cache), SampleReader(CocoDataset.load(dataset.name), preprocess)
    for _ in range(3):
        for index in range(len(dataset)):
            assert_same(reader.read(index), plain.read(index))
    assert dataset.decoded == len(dataset)
    folder = cache.folder
    assert folder.exists()
    del cache, reader
    gc.collect()
    assert folder.exists() == (kind == "disk"), "what lay in memory goes with the cache"


def test_what_changed_is_read_again(tmp_path: Path) -> None:
    path = write_set(tmp_path)

    def decoded(path: Path, **options: object) -> int:
        dataset = counted(path)
        cache = SampleCache(tmp_path / "cache", 10**7)
        reader = SampleReader(dataset, ImagePreprocess(**options), cache)
        plain = SampleReader(CocoDataset.load(path), ImagePreprocess(**options))
        for index in range(len(dataset)):
            assert_same(reader.read(index), plain.read(index))
        return dataset.decoded

    assert decoded(path) == 5
    assert decoded(path) == 0, "another process finds them"
    assert decoded(path, invert="auto") == 5, "another preparation"
    image = tmp_path / "3.png"
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(image)
    assert decoded(path) == 1, "another image"
    os.utime(image, (1, 1))
    assert decoded(path) == 1, "another time of the file"
    write_set(tmp_path, moved=1)
    assert decoded(path) == 5, "other masks"
    write_set(tmp_path, moved=1, crowd=False)
    assert decoded(path) == 1, "a crowd that is none"


def test_the_limit_holds_and_unused_samples_make_room(tmp_path: Path) -> None:
    path = write_set(tmp_path, images=8)
    size = pack_sample(SampleReader(CocoDataset.load(path), ImagePreprocess()).read(0)).nbytes + 1024
    folder, limit = tmp_path / "cache", 4 * size + 500

    def stored() -> list[Path]:
        files = list(folder.rglob("*.npy"))
        assert sum(file.stat().st_size for file in files) <= limit
        return files

    first = SampleReader(counted(path), ImagePreprocess(), SampleCache(folder, limit))
    for index in range(8):
        first.read(index)
    assert 3 <= len(stored()) <= 4
    before = set(stored())
    for index in reversed(range(8)):
        first.read(index)
    assert set(stored()) == before, "samples in use are not thrown out for others that come as often"
    for file in before:
        os.utime(file, (time.time() - 100,) * 2)
    second = SampleReader(counted(path), ImagePreprocess(invert="auto"), SampleCache(folder, limit))
    for index in range(8):
        second.read(index)
    assert not before & set(stored()), "those of a training that is over do"
    SampleCache(folder, size)
    assert len(stored()) <= 1


def test_broken_files_and_a_lost_tally_are_no_harm(tmp_path: Path) -> None:
    path = write_set(tmp_path)
    folder = tmp_path / "cache"
    plain = SampleReader(CocoDataset.load(path), ImagePreprocess())
    reader = SampleReader(counted(path), ImagePreprocess(), SampleCache(folder, 10**7))
    for index in range(5):
        reader.read(index)
    files = sorted(folder.rglob("*.npy"))
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-64])
    files[2].write_bytes(b"other" + files[2].read_bytes()[5:])
    (folder / "total.txt").write_text("much")
    again = SampleReader(counted(path), ImagePreprocess(), SampleCache(folder, 10**7))
    for index in range(5):
        assert_same(again.read(index), plain.read(index))
    assert again.dataset.decoded == 3
    for index in range(5):
        assert_same(again.read(index), plain.read(index))
    assert again.dataset.decoded == 3


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match=r"CACHE_FOLDER"):
        SampleCache(blocked / "cache", 10**6)
    path = write_set(tmp_path)
    cache = SampleCache(tmp_path / "cache", 10**7)
    reader = SampleReader(counted(path), ImagePreprocess(), cache)
    shutil.rmtree(cache.folder)
    cache.folder.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for index in range(5):
                reader.read(index)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert reader.dataset.decoded == 10


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detseg.data.sample_cache._MEMORY_FOLDER", tmp_path)
    left, young, alive = (tmp_path / f"detseg-samples-{number}-x" for number in (1, 2, 3))
    for folder in (left, young, alive):
        folder.mkdir()
        (folder / "owner.lock").touch()
    for folder in (left, alive):
        os.utime(folder, (1, 1))
    program = (
        "import sys; from pathlib import Path; from detseg.files.lock import try_lock; "
        "lock = try_lock(Path(sys.argv[1])); print(lock is not None, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(alive / "owner.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline().strip() == "True"
        cache = SampleCache.in_memory(10**6)
        assert not left.exists()
        assert young.exists()
        assert alive.exists()
        assert cache.folder.parent == tmp_path
        holder.stdin.close()


FILL = """
import sys
from pathlib import Path
from detseg.coco.dataset import CocoDataset
from detseg.data.preprocess import ImagePreprocess
from detseg.data.sample_cache import SampleCache
from detseg.data.sample_cache import SampleReader

path, folder, limit = sys.argv[1:]
reader = SampleReader(CocoDataset.load(path), ImagePreprocess(), SampleCache(Path(folder), int(limit)))
for index in range(12):
    reader.read(index)
"""


def test_processes_that_write_at_once_keep_the_limit_together(tmp_path: Path) -> None:
    path = write_set(tmp_path, images=12)
    size = pack_sample(SampleReader(CocoDataset.load(path), ImagePreprocess()).read(0)).nbytes + 1024
    folder, limit = tmp_path / "cache", 6 * size
    SampleCache(folder, limit)
    processes = [subprocess.Popen([sys.executable, "-c", FILL, path, folder, str(limit)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert 0 < sum(file.stat().st_size for file in folder.rglob("*.npy")) <= limit
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_training_sees_the_same_with_a_cache(tmp_path: Path, kind: str) -> None:
    dataset = CocoDataset.load(write_set(tmp_path))
    keys = [
        "MODEL.ROI_HEADS.NUM_CLASSES=1",
        "INPUT.MIN_SIZE_TRAIN=[0]",
        "INPUT.COPY_PASTE.PROBABILITY=0.7",
        f"DATALOADER.CACHE_FOLDER={(tmp_path / 'cache').as_posix()}",
    ]
    plain, cached = (
        TrainingStream.build(
            LoaderOptions.from_config(load_config(None, [*keys, f"DATALOADER.CACHE={name}"])), dataset, 3
        )
        for name in ("none", kind)
    )
    sent = pickle.loads(pickle.dumps(cached))  # what a worker gets that is started and not forked
    for position in range(20):
        assert_same(sent[position], plain[position])
    loader = TrainLoader(cached, batch_size=5, start_position=0, total=20, workers=2)
    for number, batch in enumerate(loader):
        for within, sample in enumerate(batch):
            assert_same(sample, plain[5 * number + within])
    for position in range(20):
        assert_same(cached[position], plain[position])
        assert cached[position].image.flags.writeable


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.sampled_from([np.uint8, np.uint16, np.float32]))
def test_a_file_holds_any_sample(tmp_path_factory, height: int, width: int, channels: int, dtype: type) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(height * width)
    masks = rng.random((3, height, width)) < 0.3
    sample = Sample(
        rng.integers(0, 200, (height, width, channels)).astype(dtype), LabelLayers.from_masks(masks), np.arange(3)
    )
    if height % 2:
        sample = dataclasses.replace(sample, ignore=masks[0], metadata={"pixel_size": [0.5, 1.0], "plate": "ä"})
    path = tmp_path_factory.mktemp("sample") / "one.npy"
    np.save(path, pack_sample(sample))
    assert path.stat().st_size <= pack_sample(sample).nbytes + 1024
    assert_same(read_sample(path), sample)
