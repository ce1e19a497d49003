"""Folders of images and labels to COCO files: pixel-equal masks, the right parts, all problems told together."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools.coco import COCO

from detseg.cli.main import run_command
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.label_images import LabelImages
from detseg.images.reading import read_label_image
from detseg.structures.label_layers import LabelLayers

RNG = np.random.default_rng(0)


def labels_of(num_objects: int, height: int = 40, width: int = 50) -> np.ndarray:
    """A label image with gaps in its numbers, where the first object has two components."""
    labels = np.zeros((height, width), np.uint16)
    for number in range(1, num_objects):
        y, x = RNG.integers(0, height - 6), RNG.integers(10, width - 6)
        labels[y : y + 6, x : x + 6] = 7 * number
    if num_objects:
        labels[:2, :3] = 60_000
        labels[-3:, :2] = 60_000
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Twenty images; the third has no object, two lie in a subfolder."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    for index in range(20):
        name = f"plate/{index:02d}" if index > 17 else f"{index:02d}"
        for folder in (images, labels):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (40, 50), dtype=np.uint8)).save(images / f"{name}.png")
        tifffile.imwrite(labels / f"{name}.tif", labels_of(0 if index == 2 else 4 + index % 3))
    return images, labels


def prepare(images: Path, labels: Path, output: Path, *options: str | Path) -> int:
    words = ["--images", images, "--labels", labels, "--output", output, *options]
    return run_command("prepare", ["label_images", *map(str, words)], prog=None)


def assert_pixel_equal(dataset: CocoDataset, labels: Path) -> None:
    for index, record in enumerate(dataset.images):
        name = Path(record.file_name).with_suffix("")
        path = next(path for path in labels.rglob(f"{name.name}*") if path.is_file())
        expected = LabelLayers.from_label_image(read_label_image(path))
        sample = dataset.read_sample(index)
        np.testing.assert_array_equal(sample.layers.layers, expected.layers, err_msg=record.file_name)


def test_masks_are_the_label_images_to_the_pixel_and_valid_for_pycocotools(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert prepare(*folders, output, "--classes", "nucleus", "--seed", "4") == 0
    table = capsys.readouterr().out
    seen: list[str] = []
    for part, count in (("train", 14), ("val", 3), ("test", 3)):
        dataset = CocoDataset.load(output / f"{part}.json")
        assert dataset.class_names == ["nucleus"]
        assert len(dataset) == count
        assert f"{part} " in table
        assert f" {dataset.num_objects} " in table
        dataset.check_images_exist()
        assert_pixel_equal(dataset, folders[1])
        coco = COCO(str(output / f"{part}.json"))
        for annotation in coco.loadAnns(coco.getAnnIds()):
            assert coco.annToMask(annotation).sum() == annotation["area"]
        seen += [record.file_name for record in dataset.images]
    assert len(set(seen)) == 20
    assert "02.png" in seen, "an image without objects is kept"
    assert "plate/19.png" in seen


def test_output_beside_the_images_can_move_with_them(folders: tuple[Path, Path], tmp_path: Path) -> None:
    prepare(*folders, tmp_path / "out", "--split", "1")
    assert json.loads((tmp_path / "out" / "all.json").read_text())["info"]["image_root"] == "../images"
    prepare(*folders, tmp_path / "far" / "away" / "out", "--split", "0.5", "0.5")
    root = json.loads((tmp_path / "far" / "away" / "out" / "val.json").read_text())["info"]["image_root"]
    assert Path(root) == folders[0].resolve()


def test_the_same_seed_makes_the_same_bytes_and_lists_repeat_a_split(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        prepare(*folders, tmp_path / name, "--seed", "7", "--write-lists")
    prepare(*folders, tmp_path / "c", "--split-lists", tmp_path / "a")
    for part in ("train", "val", "test"):
        content = (tmp_path / "a" / f"{part}.json").read_bytes()
        assert (tmp_path / "b" / f"{part}.json").read_bytes() == content
        assert (tmp_path / "c" / f"{part}.json").read_bytes() == content


def test_strata_are_stored_as_group_and_split_alike(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(tmp_path / "kinds.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["well", "image", "kind"])
        for index in range(20):  # with suffix, without its folder
            writer.writerow([index, f"{index:02d}.png", "rare" if index % 2 else "common"])
    options = ["--table", tmp_path / "kinds.csv", "--key", "image", "--stratify-by", "kind"]
    assert prepare(*folders, tmp_path / "out", "--split", "0.5", "0.5", *options) == 0
    for part in ("train", "val"):
        groups = [record.metadata["group"] for record in CocoDataset.load(tmp_path / "out" / f"{part}.json").images]
        assert (groups.count("rare"), groups.count("common")) == (5, 5)
    assert "rare" in capsys.readouterr().out
    assert prepare(*folders, tmp_path / "x", "--stratify-by", "kind") == 2
    assert prepare(*folders, tmp_path / "x", *options[:-1], "sort") == 2
    assert "columns are: well, image, kind" in capsys.readouterr().err


def test_folds_are_pairs_of_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    prepare(*folders, tmp_path / "out", "--folds", "4")
    held_out: list[str] = []
    for fold in range(4):
        names = [
            {record.file_name for record in CocoDataset.load(tmp_path / "out" / f"fold{fold}_{part}.json").images}
            for part in ("train", "val")
        ]
        assert not names[0] & names[1]
        assert len(names[0] | names[1]) == 20
        held_out += names[1]
    assert len(held_out) == len(set(held_out)) == 20


def test_all_problems_are_told_together_and_skipped_on_demand(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = folders
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:300])
    tifffile.imwrite(labels / "04.tif", labels_of(3, height=41))
    (tmp_path / "out").mkdir()
    assert prepare(images, labels, tmp_path / "out") == 2
    message = capsys.readouterr().err
    for part in ("2 problems", "03.png", "truncated", "04.tif", "41 x 50", "--skip-bad"):
        assert part in message
    assert list((tmp_path / "out").iterdir()) == [], "nothing is written before all is read"

    (labels / "05.tif").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(labels / "stray.png")
    assert prepare(images, labels, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "05.png: has no label image" in message
    assert "stray.png: has no image" in message

    assert prepare(images, labels, tmp_path / "out", "--skip-bad") == 0
    skipped = (tmp_path / "out" / "skipped.txt").read_text()
    assert all(name in skipped for name in ("03.png", "04.tif", "05.png", "stray.png"))
    total = sum(len(CocoDataset.load(tmp_path / "out" / f"{part}.json")) for part in ("train", "val", "test"))
    assert total == 17


def test_nothing_is_overwritten_without_being_told(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(*folders, tmp_path / "out") == 0
    before = (tmp_path / "out" / "val.json").read_bytes()
    assert prepare(*folders, tmp_path / "out", "--seed", "1") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "val.json").read_bytes() == before
    assert prepare(*folders, tmp_path / "out", "--seed", "1", "--overwrite") == 0
    assert (tmp_path / "out" / "val.json").read_bytes() != before


def test_missing_empty_and_confused_folders_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: there is no such folder"):
        LabelImages(tmp_path / "absent", folders[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: there are no label images"):
        LabelImages(folders[0], tmp_path / "empty")
    (folders[0] / "00.jpg").write_bytes(b"")
    (folders[0] / "._01.png").write_bytes(b"what macOS leaves behind")
    problems = LabelImages(*folders).problems
    assert len(problems) == 1
    assert "00.png" in problems[0]
    assert "same name" in problems[0]


def test_suffixes_of_labels_and_one_folder_for_both(tmp_path: Path) -> None:
    for index, ending in enumerate(("_mask", "_label", "")):
        np.save(tmp_path / f"{index}.npy", np.zeros((4, 4), np.uint8))
        (tmp_path / "labels").mkdir(exist_ok=True)
        np.save(tmp_path / "labels" / f"{index}{ending}.npy", labels_of(2))
    (tmp_path / "images").mkdir()
    for path in tmp_path.glob("*.npy"):
        path.rename(tmp_path / "images" / path.name)
    reader = LabelImages(tmp_path / "images", tmp_path / "labels")
    assert reader.problems == []
    assert [reader.annotation_of[name] for name in reader.names] == ["0_mask.npy", "1_label.npy", "2.npy"]
    # Of two label images none is taken.
    np.save(tmp_path / "labels" / "2_mask.npy", labels_of(2))
    reader = LabelImages(tmp_path / "images", tmp_path / "labels")
    assert reader.names == ["0", "1"]
    assert "2.npy: has several label images" in reader.problems[0]

    together = tmp_path / "together"
    together.mkdir()
    for name in ("a.npy", "a_cells.npy", "b.npy", "b_cells.npy"):
        np.save(together / name, labels_of(2))
    reader = LabelImages(together, together, label_suffix="_cells")
    assert reader.problems == []
    assert reader.annotation_of == {"a": "a_cells.npy", "b": "b_cells.npy"}


def test_archives_are_read_as_folders_are(folders: tuple[Path, Path], tmp_path: Path) -> None:
    packed = [Path(shutil.make_archive(str(tmp_path / f"{folder.name}_zip"), "zip", folder)) for folder in folders]
    assert prepare(*packed, tmp_path / "out", "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert len(dataset) == 20
    assert_pixel_equal(dataset, folders[1])
    assert json.loads((tmp_path / "out" / "all.json").read_text())["info"]["image_root"] == "images"


def test_a_mask_of_0_and_255_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "b.png", "c.png"):
            labels = np.zeros((20, 20), np.uint8)
            labels[2:5, 2:5] = labels[9:12, 9:12] = 255
            Image.fromarray(labels).save(tmp_path / folder / name)
    assert prepare(tmp_path / "images", tmp_path / "labels", tmp_path / "out") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("next:", "then:"))]
    assert "WARNING: 3 of 3 images" in said[-1]


def extract(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder, [name for name in file.namelist() if wanted(name)])


def test_real_nuclei(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    archive, table = shared_data("dsb2018_train.zip"), shared_data("dsb2018_types.csv")
    rows = {row["image"]: row for row in csv.DictReader(table.read_text().splitlines())}
    stems = set(list(rows)[:40:2])
    extract(archive, tmp_path, lambda name: Path(name).stem in stems)
    options = ["--table", table, "--stratify-by", "kind"]
    assert prepare(tmp_path / "images", tmp_path / "labels", tmp_path / "out", "--split", "1", *options) == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert dataset.num_objects == sum(int(rows[stem]["nuclei"]) for stem in stems)
    assert_pixel_equal(dataset, tmp_path / "labels")


def test_real_pebbles_jpeg_with_labels_of_32_bit(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    extract(shared_data("imagegrains_train.zip"), tmp_path, lambda name: name.endswith((".jpg", ".tif")))
    assert prepare(tmp_path / "images", tmp_path / "labels", tmp_path / "out", "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert len(dataset) == 6
    assert_pixel_equal(dataset, tmp_path / "labels")


def test_real_objects_of_several_components_stay_one(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    wanted = [f"{folder}/set{number}.png" for folder in ("images", "labels") for number in (1, 2, 3)]
    extract(shared_data("usiigaci_train.zip"), tmp_path, lambda name: name in wanted)
    assert prepare(tmp_path / "images", tmp_path / "labels", tmp_path / "out", "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert_pixel_equal(dataset, tmp_path / "labels")
    numbers = [np.unique(read_label_image(tmp_path / "labels" / f"set{number}.png")) for number in (1, 2, 3)]
    assert dataset.num_objects == sum(len(values) - 1 for values in numbers)
