"""What is no set of objects is told of: by what makes the trap, not by its value; plausible masks are left alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats import plausibility
from detseg.formats.plausibility import check_labels, is_label_picture, split_regions, traps_of
from detseg.images.reading import read_label_image
from detseg.structures import rle as rle_codec
from detseg.structures.label_layers import LabelLayers

RNG = np.random.default_rng(0)


def cells(count: int = 40, side: int = 12, gap: int = 4) -> np.ndarray:
    """A label image of separate squares in rows."""
    across = int(np.ceil(np.sqrt(count)))
    labels = np.zeros((across * (side + gap) + gap,) * 2, np.int32)
    for index in range(count):
        y, x = (gap + place * (side + gap) for place in divmod(index, across))
        labels[y : y + side, x : x + side] = index + 1
    return labels


def noise(levels: int, side: int = 96) -> np.ndarray:
    return RNG.integers(0, levels, (side, side)).astype(np.int32)


def picture(side: int = 128) -> np.ndarray:
    """Smooth blobs with noise, as a camera of 8 bits sees them."""
    blurred = cv2.GaussianBlur(RNG.normal(size=(side, side)), (0, 0), 8)
    return np.clip(128 + 900 * blurred + RNG.normal(0, 2, (side, side)), 0, 255).astype(np.int32)


def traps(labels: np.ndarray) -> list[str]:
    return list(traps_of(rle_codec.read_runs(LabelLayers.from_label_image(labels).to_rles())))


@pytest.mark.parametrize("value", [1, 255, 7])
def test_masks_of_all_objects_together(value: int) -> None:
    assert traps(value * (cells() > 0)) == [plausibility.ONE_MASK]


def test_masks_of_classes() -> None:
    labels = cells()
    assert traps(labels % 3 + (labels > 0)) == [plausibility.ONE_MASK]


def test_numbers_of_8_bits() -> None:
    wrapped = cells(600).astype(np.uint8)
    assert traps(wrapped) == [plausibility.WRAPPED]
    assert traps(np.minimum(cells(300), 255)) == [plausibility.WRAPPED], "cut off"
    assert not traps(cells(600))
    assert not traps(cells(255)), "255 whole objects are 255 objects"


@pytest.mark.parametrize("labels", [noise(256), noise(65_536), noise(40), picture()])
def test_pictures_as_labels(labels: np.ndarray) -> None:
    assert set(traps(labels)) & {plausibility.PICTURES, plausibility.SPECKS}


def test_background_as_an_object() -> None:
    assert traps(cells() + 1) == [plausibility.BACKGROUND]


def test_edges_that_were_interpolated() -> None:
    smooth = cv2.resize((cells(60) * 5).astype(np.float32), None, fx=0.7, fy=0.7, interpolation=cv2.INTER_LINEAR)
    assert traps(smooth.astype(np.int32))


def test_plausible_masks() -> None:
    labels = cells(12)
    labels[:, 22:24] = 0  # a gap through one cell
    labels[0, 0] = 3  # and a stray pixel of another
    assert not traps(labels)
    assert not traps(cells(1))
    assert not traps(np.zeros((9, 9), np.int32))


def test_regions_are_those_of_opencv() -> None:
    for _ in range(60):
        labels = RNG.integers(0, 3, RNG.integers(1, 12, 2)).astype(np.int32)
        rles = LabelLayers.from_label_image(labels).to_rles()
        parts, owner = split_regions(rle_codec.read_runs(rles))
        assert (np.diff(owner) >= 0).all()
        for index, rle in enumerate(rles):
            mask = rle_codec.decode(rle)
            own = [rle_codec.decode(rle_codec.encode_runs(parts)[part]) for part in np.flatnonzero(owner == index)]
            assert len(own) == cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] - 1
            np.testing.assert_array_equal(np.sum(own, axis=0), mask)


def test_a_label_image_given_as_image() -> None:
    labels = cells()
    rles = LabelLayers.from_label_image(labels).to_rles()
    assert is_label_picture(labels[:, :, None] * 3, rles)
    assert not is_label_picture(np.where(labels > 0, 200, 10)[:, :, None], rles), "all cells of one gray are a picture"
    assert not is_label_picture(RNG.integers(0, 255, (*labels.shape, 1)), rles)


def write(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, array in arrays.items():
        Image.fromarray(array.astype(np.uint8 if array.max() < 256 else np.uint16)).save(folder / name)
    return folder


def prepare(images: Path, labels: Path, output: Path, *options: str) -> int:
    words = ["prepare", "label_images", "--images", images, "--labels", labels, "--output", output, "--split", "1"]
    return main([*map(str, words), *options])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line before the commands that come next."""
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("next:", "then:"))][-1]


def test_prepare_says_it_last_and_names_the_remedies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write(tmp_path / "images", {"a.png": RNG.integers(0, 255, cells().shape)})
    labels = write(tmp_path / "labels", {"a.png": cells() > 0})
    assert prepare(images, labels, tmp_path / "out") == 0
    last = last_line(capsys)
    assert last.startswith("WARNING: 1 of 1 images (a.png)")
    assert "--split-regions" in last
    assert prepare(images, labels, tmp_path / "out", "--overwrite", "--split-regions") == 0
    assert "WARNING" not in capsys.readouterr().out
    assert CocoDataset.load(tmp_path / "out" / "all.json").num_objects == 40
    filled = write(tmp_path / "filled", {"a.png": cells() + 1})
    assert prepare(images, filled, tmp_path / "out", "--overwrite") == 0
    assert "--background NUMBER" in last_line(capsys)
    assert prepare(images, filled, tmp_path / "out", "--overwrite", "--background", "1") == 0
    assert "WARNING" not in capsys.readouterr().out
    assert CocoDataset.load(tmp_path / "out" / "all.json").num_objects == 40
    empty = write(tmp_path / "empty", {"a.png": 0 * cells()})
    assert prepare(images, empty, tmp_path / "out", "--overwrite") == 0
    assert "none of the 1 images has an object" in last_line(capsys)


def test_the_same_check_of_a_coco_file_and_a_sample_of_it(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(10)]
    images = write(tmp_path / "images", {name: RNG.integers(0, 255, cells().shape) for name in names})
    labels = write(tmp_path / "labels", {name: cells() > 0 for name in names})
    assert prepare(images, labels, tmp_path / "out") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert check_labels(dataset)[0].startswith("10 of 10 images")
    assert check_labels(dataset, most=4)[0].startswith("4 of 4 images")


def test_repair_keeps_the_cells_of_a_mask_of_all_objects(tmp_path: Path) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[2:62, 2:62] = 1
    for y in range(2, 98, 12):
        mask[y : y + 8, 70:78] = 1  # 64 pixels: below a tenth of the largest
    images = write(tmp_path / "images", {"a.png": RNG.integers(0, 255, mask.shape)})
    assert prepare(images, write(tmp_path / "labels", {"a.png": mask}), tmp_path / "out", "--repair") == 0
    rles, _, _ = CocoDataset.load(tmp_path / "out" / "all.json").annotations(0)
    assert rle_codec.area(rles).sum() == mask.sum()


def test_inspect_and_repair_of_pictures_as_labels_end_soon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write(tmp_path / "images", {"a.png": cells(100) > 0, "b.png": cells(100) > 0})
    labels = write(tmp_path / "labels", {"a.png": picture(164), "b.png": cells(100)})
    assert prepare(images, labels, tmp_path / "out") == 0
    start = time.process_time()
    data = str(tmp_path / "out" / "all.json")
    assert main(["inspect_data", "--data", data, "--output", str(tmp_path / "report")]) == 0
    assert time.process_time() - start < 20
    said = capsys.readouterr().out
    assert "WARNING: 1 of 2 images (a.png)" in said
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "not objects, but an image given as labels" in report["problems"]["file"][0]
    assert main(["repair", data, str(tmp_path / "repaired.json")]) == 2
    assert "a.png: its" in capsys.readouterr().err
    assert not (tmp_path / "repaired.json").exists()


def test_label_images_with_losses_are_refused(tmp_path: Path) -> None:
    Image.fromarray(cells().astype(np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"is a JPEG.*losslessly"):
        read_label_image(tmp_path / "a.jpg")
    try:
        tifffile.imwrite(tmp_path / "a.tif", cells().astype(np.uint8), compression="jpeg")
    except (ValueError, ImportError, RuntimeError):
        Image.fromarray(cells().astype(np.uint8)).save(tmp_path / "a.tif", compression="jpeg")
    with pytest.raises(DataError, match="compressed as JPEG"):
        read_label_image(tmp_path / "a.tif")


def test_dsb_masks_with_gray_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "set" / "a" / kind).mkdir(parents=True)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "set" / "a" / "images" / "a.png")
    mask = np.zeros((20, 20), np.uint8)
    mask[5:9, 5:9], mask[4, 5:9] = 255, 90
    Image.fromarray(mask).save(tmp_path / "set" / "a" / "masks" / "1.png")
    words = ["prepare", "dsb2018", "--source", tmp_path / "set", "--output", tmp_path / "out", "--split", "1"]
    assert main([*map(str, words)]) == 2
    assert "has 2 values other than 0, 90 to 255" in capsys.readouterr().err
