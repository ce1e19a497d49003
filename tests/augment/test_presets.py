"""The presets of configs/_base_: each loads with a network, changes samples, and gives the same in every worker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.augment.policy import TrainPolicy
from detseg.config import Config, load_config
from detseg.data.coco import CocoDataset
from detseg.data.loader import TrainLoader
from detseg.data.stream import TrainingStream
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
    policy = TrainPolicy.from_config(cfg, [30, 10])
    sample = cells(np.float32 if preset in SCALED else np.uint8, channels)
    seen = [policy(sample, np.random.default_rng(seed)) for seed in range(16)]
    for one in seen:
        assert one.image.dtype == sample.image.dtype
        assert (one.height, one.width) == (128, 128)
        assert 0 <= one.image.min() <= one.image.max() <= 255
        assert len(one.classes) == len(one.layers)
    assert len({one.image.tobytes() for one in seen}) == 16
    assert np.mean([len(one.layers) > 0 for one in seen]) > 0.7


def test_gray_images_take_the_stain_out_of_the_histology_preset(tmp_path: Path) -> None:
    entries = config_of("augment_histology", tmp_path).INPUT.ALBUMENTATIONS
    gray = [entry for entry in entries if entry["name"] not in ("HEStain", "HueSaturationValue")]
    config_of("augment_histology", tmp_path, "INPUT.GRAYSCALE", "True", "INPUT.ALBUMENTATIONS", repr(gray))


@pytest.mark.parametrize("context", [None, "spawn"])
def test_the_same_seed_gives_the_same_samples_whatever_the_number_of_workers(
    context: str | None, tmp_path: Path
) -> None:
    sample = cells(np.uint8, 1)
    images, annotations = [], []
    for number in range(4):
        Image.fromarray(np.roll(sample.image[..., 0], 20 * number)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 240, "width": 300})
        for rle in sample.layers.to_rles()[number::4]:
            rle = {
                "size": rle["size"],
                "counts": rle["counts"] if isinstance(rle["counts"], str) else rle["counts"].decode(),
            }
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1 + number % 2, "segmentation": rle}
            annotations.append(entry | {"iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]})
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "set.json").write_text(json.dumps(content), encoding="utf-8")
    words = [
        "INPUT.CROP.SIZE",
        "[96, 96]",
        "INPUT.CROP.BALANCE_POWER",
        "0.5",
        "INPUT.RANDOM_ELASTIC.PROBABILITY",
        "0.7",
    ]
    cfg = config_of("augment_phase_contrast", tmp_path, *words)
    dataset = CocoDataset.load(tmp_path / "set.json")

    def samples(workers: int) -> list[Sample]:
        stream = TrainingStream.from_config(cfg, dataset, 3)
        loader = TrainLoader(
            stream, batch_size=2, start_position=0, total=8, workers=workers, context=context if workers else None
        )
        return [sample for batch in loader for sample in batch]

    alone = samples(0)
    for workers in (1, 2) if context is None else (1,):
        for one, other in zip(alone, samples(workers), strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(one.layers.layers, other.layers.layers)
            np.testing.assert_array_equal(one.classes, other.classes)
