"""Synthetic cells: seeded, exact, dense, and refused where they cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy import ndimage

from detseg.cli.main import main
from detseg.coco.catalog import load_dataset, resolve_dataset
from detseg.curation.synthetic import KINDS, generate_dataset, make_image, make_missing_sets
from detseg.curation.synthetic.cells import MEAN_AREA, cell_outline, fill_outline
from detseg.errors import DataError
from detseg.structures.label_layers import LabelLayers


def touching_and_overlapping(layers: LabelLayers) -> tuple[np.ndarray, np.ndarray]:
    """Which objects touch another (8 neighbours) and which share a pixel, found by brute force."""
    masks = layers.masks()
    covered = masks.sum(axis=0)
    touching, overlapping = [], []
    for mask in masks:
        grown = ndimage.binary_dilation(mask, np.ones((3, 3)))
        touching.append(bool(((covered - mask)[grown] > 0).any()))
        overlapping.append(bool((covered[mask] > 1).any()))
    return np.array(touching), np.array(overlapping)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another():
    first, second, other = (make_image(seed, 96, 128, 12) for seed in ((3, 1), (3, 1), (3, 2)))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1].layers, second[1].layers)
    assert np.array_equal(first[2], second[2])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("height", "width", "cells"), [(256, 256, (30, 100)), (200, 330, 80), (64, 64, 0), (48, 64, 1)]
)
def test_masks_are_exact_whole_and_in_the_image(height, width, cells):
    for seed in range(3):
        image, layers, classes = make_image(seed, height, width, cells)
        assert image.shape == (height, width, 1)
        assert image.dtype == np.uint8
        assert layers.layers.shape[1:] == (height, width)
        assert layers.layers.dtype == np.int32
        assert len(classes) == len(layers)
        assert classes.dtype == np.int64
        if isinstance(cells, int):
            assert len(layers) == cells
        else:
            assert cells[0] <= len(layers) <= cells[1]
        assert (layers.areas() >= 12).all()
        for mask in layers.masks():
            assert ndimage.label(mask)[1] == 1, "a cell is one 4-connected piece"


def test_all_kinds_appear_and_differ_in_size_and_form():
    area = {kind: [] for kind in KINDS}
    roundness = {kind: [] for kind in KINDS}
    rng = np.random.default_rng(0)
    for kind in KINDS:
        for _ in range(400):
            crop, _, _ = fill_outline(cell_outline(kind, 1.0, rng))
            area[kind].append(crop.sum())
            first, second = np.linalg.eigvalsh(np.cov(np.argwhere(crop).T))
            roundness[kind].append(first / second)
        assert np.mean(area[kind]) == pytest.approx(MEAN_AREA[kind], rel=0.08), "the fit into an image counts on this"
        assert 9 <= np.median(area[kind]) ** 0.5 <= 45
    assert np.mean(area["round"]) < np.mean(area["elongated"]) < np.mean(area["irregular"])
    assert np.mean(roundness["elongated"]) < 0.2 < 0.35 < np.mean(roundness["irregular"]) < np.mean(roundness["round"])
    classes = np.concatenate([make_image(seed, 256, 256)[2] for seed in range(4)])
    assert set(classes.tolist()) == {0, 1, 2}


def test_about_a_third_of_the_cells_touch_and_a_few_share_pixels():
    found = [touching_and_overlapping(make_image((7, index), 288, 288)[1]) for index in range(10)]
    touching = np.concatenate([touch for touch, _ in found]).mean()
    overlapping = np.concatenate([overlap for _, overlap in found]).mean()
    assert 0.28 <= touching <= 0.45, f"{touching:.2f} of the cells touch"
    assert 0.01 <= overlapping <= 0.08, f"{overlapping:.3f} of the cells share pixels"


def test_options_for_contact_are_kept():
    touching, _ = touching_and_overlapping(make_image(1, 384, 384, 40, touching=0.0, overlapping=0.0)[1])
    assert touching.sum() == 0
    layers = make_image(1, 256, 256, 40, touching=0.9, overlapping=0.0)[1]
    touching, overlapping = touching_and_overlapping(layers)
    assert touching.mean() > 0.75
    assert overlapping.sum() == 0
    assert layers.num_layers == 1
    _, overlapping = touching_and_overlapping(make_image(1, 256, 256, 60, touching=0.6, overlapping=0.5)[1])
    assert overlapping.mean() > 0.2


def test_the_cells_can_be_seen():
    """Contrast is low, but halo and body differ from the background by more than the noise does."""
    for kind in KINDS:
        image, layers, _ = make_image(5, 256, 256, 30, kinds=[kind])
        picture = cv2.GaussianBlur(image[:, :, 0].astype(np.float32), (0, 0), 1.0)
        cells = layers.foreground()
        edge = ndimage.binary_dilation(cells, iterations=2) & ~ndimage.binary_erosion(cells, iterations=2)
        far = ~ndimage.binary_dilation(cells, iterations=8)
        assert 70 < image.mean() < 180
        local = picture - cv2.GaussianBlur(picture, (0, 0), 8)
        assert local[edge].std() > 1.8 * local[far].std()
        assert image.std() < 30, "low contrast"


@pytest.mark.parametrize("number", [2000, 4000])
def test_thousands_of_cells_find_room(number):
    _, layers, classes = make_image(11, 1024, 1024, number, channels=3)
    assert len(layers) == len(classes) >= 0.99 * number
    assert layers.num_layers <= 4
    assert np.median(layers.areas()) > 60


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kinds": ["square"]}, "square"),
        ({"kinds": []}, "kinds"),
        ({"height": 8}, "at least 32"),
        ({"cells": (5, 2)}, "cells"),
        ({"touching": 0.1, "overlapping": 0.5}, "overlapping"),
        ({"size": 0}, "size"),
        ({"size": float("inf")}, "size"),
        ({"debris": -1}, "debris"),
        ({"noise": float("nan")}, "noise"),
        ({"channels": 4}, "channels"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(change, named):
    arguments = {"seed": 0, "height": 64, "width": 64, "cells": 3, **change}
    with pytest.raises(DataError, match=named):
        make_image(**arguments)


def generate(folder, **change):
    arguments = {"seed": 4, "counts": {"train": 3, "val": 1}, "height": (64, 80), "width": 96, "cells": [4, 8]}
    return generate_dataset(folder, **{**arguments, "progress": False, **change})


def test_a_dataset_reads_back_with_pycocotools(tmp_path):
    paths = generate(tmp_path / "cells")
    assert sorted(paths) == ["train", "val"]
    coco = COCO(str(paths["train"]))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(KINDS)
    assert "synthetic" in coco.dataset["info"]["description"]
    assert len(coco.imgs) == 3
    heights = set()
    for record in coco.imgs.values():
        image = cv2.imread(str(tmp_path / "cells" / record["file_name"]), cv2.IMREAD_UNCHANGED)
        assert image.shape == (record["height"], record["width"])
        assert record["width"] == 96
        heights.add(record["height"])
        for annotation in coco.loadAnns(coco.getAnnIds(record["id"])):
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation["area"] > 0
            x, y, width, height = annotation["bbox"]
            inside = mask[y : y + height, x : x + width]
            assert inside.sum() == mask.sum()
            assert inside[0].any()
            assert inside[-1].any()
    assert all(64 <= height <= 80 for height in heights)
    assert [path.name for path in tmp_path.iterdir()] == ["cells"], "no temporary folder stays"


def test_a_larger_dataset_begins_with_the_smaller_one(tmp_path):
    small, large = generate(tmp_path / "small"), generate(tmp_path / "large", counts={"train": 4})
    for name in ("00000.png", "00002.png"):
        assert (tmp_path / "small/train" / name).read_bytes() == (tmp_path / "large/train" / name).read_bytes()
    annotations = json.loads(small["train"].read_text())["annotations"]
    assert json.loads(large["train"].read_text())["annotations"][: len(annotations)] == annotations


def test_one_kind_an_image(tmp_path):
    data = json.loads(generate(tmp_path / "cells", one_kind_per_image=True)["train"].read_text())
    assert [image["group"] for image in data["images"]] == list(KINDS)
    for annotation in data["annotations"]:
        assert annotation["category_id"] == annotation["image_id"]


def test_nothing_is_overwritten_unasked_and_nothing_foreign_is_deleted(tmp_path):
    folder = tmp_path / "cells"
    generate(folder)
    with pytest.raises(DataError, match="--overwrite"):
        generate(folder)
    generate(folder, counts={"train": 1}, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["train", "train.json"]
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        generate(folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"counts": {"../up": 1}}, "up"),
        ({"counts": {"train": -1}}, "train"),
        ({"counts": {}}, "counts"),
        ({"counts": 3}, "counts"),
        ({"kinds": 3}, "kinds"),
        ({"size": "large"}, "size is 'large'"),
        ({"height": (80, 64)}, "80"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused_and_leaves_nothing(tmp_path, change, named):
    with pytest.raises(DataError, match=named):
        generate(tmp_path / "cells", **change)
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_the_same_as_the_function(tmp_path, capsys):
    sets = ["--train", "1", "--val", "0", "--test", "1", "--seed", "3"]
    look = ["--height", "64", "--width", "70", "90", "--cells", "5", "--kinds", "round"]
    assert main(["make_synthetic", "--output", str(tmp_path / "cells"), *sets, *look]) == 0
    assert "test.json" in capsys.readouterr().out
    generate_dataset(
        tmp_path / "same",
        seed=3,
        counts={"train": 1},
        height=64,
        width=(70, 90),
        cells=5,
        kinds=["round"],
        progress=False,
    )
    first, second = (json.loads((tmp_path / name / "train.json").read_text()) for name in ("cells", "same"))
    assert first["annotations"] == second["annotations"]
    assert {annotation["category_id"] for annotation in first["annotations"]} == {3}
    assert main(["make_synthetic", "--output", str(tmp_path / "cells"), "--cells", "9", "2", "--overwrite"]) == 2
    assert (tmp_path / "cells" / "train.json").exists(), "what was there stays when the new one fails"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of data sets of one's own."""
    monkeypatch.setenv("DETSEG_DATASETS", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


TINY = """
- name: tiny_train
  generate: synthetic
  split: train
  options: {seed: 3, counts: {train: 2, val: 1}, height: 64, width: 80, cells: [3, 6], progress: false}
"""


def test_a_synthetic_set_is_made_once_and_again_for_other_options(home: Path) -> None:
    (home / "catalog.yaml").write_text(TINY, encoding="utf-8")
    make_missing_sets(["tiny_train", "nowhere.json", "dsb2018_train"])
    dataset = load_dataset("tiny_train")
    assert len(dataset) == 2
    dataset.check_images_exist()
    path = resolve_dataset("tiny_train").json
    made = path.stat().st_mtime_ns
    make_missing_sets(["tiny_train"])
    assert resolve_dataset("tiny_train").json == path
    assert path.stat().st_mtime_ns == made
    (home / "catalog.yaml").write_text(TINY.replace("seed: 3", "seed: 4"), encoding="utf-8")
    make_missing_sets(["tiny_train"])
    other = load_dataset("tiny_train")
    assert resolve_dataset("tiny_train").json != path
    assert not np.array_equal(other.read_image(0), dataset.read_image(0))


def test_two_processes_that_need_a_synthetic_set_make_it_once(home: Path) -> None:
    (home / "catalog.yaml").write_text(TINY, encoding="utf-8")
    code = (
        "from detseg.coco.catalog import load_dataset; from detseg.curation.synthetic import make_missing_sets; "
        "make_missing_sets(['tiny_train']); load_dataset('tiny_train').check_images_exist()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert len([path for path in (home / "generated").iterdir() if path.is_dir()]) == 1
