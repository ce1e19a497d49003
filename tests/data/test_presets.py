"""The presets of configs/_base_: each loads with a network, changes samples, and gives the same in every worker."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.coco.dataset import CocoDataset
from detseg.config import Config, load_config
from detseg.data.augment.policy import TrainPolicy
from detseg.data.loader import LoaderOptions, TrainingStream, TrainLoader
from detseg.structures.label_layers import LabelLayers
from detseg.structures.sample import Sample

BASE = Path(__file__).resolve().parents[2] / "configs" / "_base_"
PRESETS = sorted(path.stem for path in BASE.glob("augment_*.yaml"))
SCALED = ("augment_phase_contrast", "augment_fluorescence")


def config_of(preset: str, tmp_path: Path, *words: str) -> Config:
    file = tmp_path / "run.yaml"
    network = BASE / "mask_rcnn_small_fpn.yaml"
    file.write_text(f"_BASE_: [{network.as_posix()}, {(BASE / preset).as_posix()}.yaml]\n", encoding="utf-8")
    return load_config(file, [*words, *(["INPUT.SCALING", "percentile"] if preset in SCALED else [])])


def cells(dtype: type, channels: int) -> Sample:
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:240, :300]
    labels = np.zeros((240, 300), np.int32)
    for index in range(1, 40):
        labels[(yy - rng.integers(240)) ** 2 + (xx - rng.integers(300)) ** 2 < rng.integers(9, 150)] = index
    image = np.clip(rng.normal(60, 9, (240, 300, channels)) + 120 * (labels > 0)[..., None], 0, 255).astype(dtype)
    layers = LabelLayers.from_label_image(labels)
    return Sample(image, layers, rng.integers(0, 2, len(layers)), None, 1, "a.png")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_preset_gives_samples_that_a_network_takes(preset: str, channels: int, tmp_path: Path) -> None:
    cfg = config_of(preset, tmp_path, "INPUT.CROP.SIZE", "[128, 128]")
    policy = TrainPolicy.from_config(cfg)
    policy = dataclasses.replace(policy, crop=policy.crop.for_counts([30, 10]))
    sample = cells(np.float32 if preset in SCALED else np.uint8, channels)
    seen = [policy(sample, np.random.default_rng(seed)) for seed in range(8)]
    for one in seen:
        assert one.image.dtype == sample.image.dtype
        assert (one.height, one.width) == (128, 128)
        assert 0 <= one.image.min() <= one.image.max() <= 255
        assert len(one.classes) == len(one.layers)
    assert len({one.image.tobytes() for one in seen}) == 8
    assert np.mean([len(one.layers) > 0 for one in seen]) > 0.7


def test_gray_images_take_the_stain_out_of_the_histology_preset(tmp_path: Path) -> None:
    entries = config_of("augment_histology", tmp_path).INPUT.ALBUMENTATIONS
    gray = [entry for entry in entries if entry["name"] not in ("HEStain", "HueSaturationValue")]
    config_of("augment_histology", tmp_path, "INPUT.GRAYSCALE", "True", "INPUT.ALBUMENTATIONS", repr(gray))


def data_set(folder: Path) -> CocoDataset:
    """Four images that share the objects of one among them, in two classes."""
    sample = cells(np.uint8, 1)
    images, annotations = [], []
    for number in range(4):
        Image.fromarray(np.roll(sample.image[..., 0], 20 * number)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 240, "width": 300})
        for rle in sample.layers.to_rles()[number::4]:
            counts = rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode()
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + number % 2}
            entry["segmentation"] = {"size": rle["size"], "counts": counts}
            annotations.append(entry | {"iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "set.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return CocoDataset.load(path)


def test_the_same_seed_gives_the_same_samples_in_every_worker_and_order_and_from_a_cache(tmp_path: Path) -> None:
    """A spawned worker gets a pickled stream; how it starts is tried in tests/data/test_loader.py."""
    words = ["INPUT.CROP.SIZE", "[96, 96]", "INPUT.CROP.BALANCE_POWER", "0.5"]
    words += ["INPUT.RANDOM_ELASTIC.PROBABILITY", "0.7"]
    words += ["INPUT.COPY_PASTE.PROBABILITY", "0.8", "INPUT.COPY_PASTE.SOURCES", '["train", "image"]']
    dataset = data_set(tmp_path)
    cfg = config_of("augment_phase_contrast", tmp_path, *words)
    stream = TrainingStream.build(LoaderOptions.from_config(cfg), dataset, 3)
    expected = [stream[position] for position in range(6)]
    loader = TrainLoader(stream, batch_size=2, start_position=0, total=6, workers=2)
    in_workers = [sample for batch in loader for sample in batch]
    pickled = pickle.loads(pickle.dumps(TrainingStream.build(LoaderOptions.from_config(cfg), dataset, 3)))
    backwards = [pickled[position] for position in reversed(range(6))][::-1]
    cached_cfg = config_of("augment_phase_contrast", tmp_path, *words, "DATALOADER.CACHE", "memory")
    cached = TrainingStream.build(LoaderOptions.from_config(cached_cfg), dataset, 3)
    twice = [cached[position] for _ in range(2) for position in range(6)]
    for found in (in_workers, backwards, twice[:6], twice[6:]):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.layers.layers, other.layers.layers)
            np.testing.assert_array_equal(one.classes, other.classes)
