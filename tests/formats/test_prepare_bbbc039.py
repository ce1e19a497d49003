"""BBBC039: regions of every colour are nuclei, the published lists are the split, their number is checked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from readers_for_tests import HEIGHT, WIDTH, masks_by_class, run

from detseg.coco.dataset import CocoDataset
from detseg.formats import bbbc039

SIZES = {"training": 4, "validation": 2, "test": 2}


def coloured_mask(index: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A mask (H, W, 4) and its nuclei: two of one colour apart, one of another colour that touches, a diagonal pair."""
    mask = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    mask[..., 3] = 255
    nuclei = []
    for colour, place in (
        ((1, 0, 0), (slice(2, 8), slice(3 + index, 9 + index))),
        ((2, 0, 0), (slice(2, 8), slice(9 + index, 14 + index))),
        ((1, 0, 0), (slice(20, 25), slice(3, 9))),
        ((0, 0, 7), (slice(15, 18), slice(30, 34))),
    ):
        mask[(*place, slice(0, 3))] = colour
        nucleus = np.zeros((HEIGHT, WIDTH), dtype=bool)
        nucleus[place] = True
        nuclei.append(nucleus)
    # Pixels that touch at a corner are one region.
    mask[28, 20, 0] = mask[29, 21, 0] = 3
    corner = np.zeros((HEIGHT, WIDTH), dtype=bool)
    corner[28, 20] = corner[29, 21] = True
    return mask, [*nuclei, corner]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    root = tmp_path / "bbbc039"
    for folder in ("images", "masks", "metadata"):
        (root / folder).mkdir(parents=True)
    number = 0
    for part, count in SIZES.items():
        lines = []
        for _ in range(count):
            name = f"IXMtest_A0{number}_s1_w1AE62AD2F"
            tifffile.imwrite(root / "images" / f"{name}.tif", np.full((HEIGHT, WIDTH), 300 + number, np.uint16))
            Image.fromarray(coloured_mask(number)[0]).save(root / "masks" / f"{name}.png")
            lines.append(f"{name}.png")
            number += 1
        (root / "metadata" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    (root / "metadata" / "readme.txt").write_text("other text")
    return root


def zipped(root: Path) -> Path:
    """The same as it is downloaded."""
    target = root.with_name("zipped")
    target.mkdir()
    for folder in ("images", "masks", "metadata"):
        with zipfile.ZipFile(target / f"{folder}.zip", "w") as archive:
            for file in sorted((root / folder).iterdir()):
                archive.write(file, f"{folder}/{file.name}")
            archive.writestr(f"__MACOSX/{folder}/._x.png", b"what macOS adds")
    return target


def test_nuclei_and_split_from_folders_and_archives(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bbbc039, "PUBLISHED_TEST_NUCLEI", 10)
    for source in (published, zipped(published)):
        output = tmp_path / f"{source.name}_out"
        assert run("prepare bbbc039", output, "--source", source) == 0
        assert "the 2 published test images have 10 nuclei, as published" in capsys.readouterr().out
        for part, count in (("train", 4), ("val", 2), ("test", 2)):
            dataset = CocoDataset.load(output / f"{part}.json")
            assert len(dataset) == count
            dataset.check_images_exist()
            for index, record in enumerate(dataset.images):
                nuclei = coloured_mask(int(Path(record.file_name).name[10]))[1]
                expected = sorted(("nucleus", np.packbits(nucleus).tobytes()) for nucleus in nuclei)
                assert masks_by_class(dataset, index) == expected
            assert dataset.read_image(0).dtype == np.uint16


def test_another_number_of_nuclei_is_pointed_out(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare bbbc039", tmp_path / "out", "--source", published) == 0
    assert "have 10 nuclei instead of the published 5720" in capsys.readouterr().out


def test_lists_masks_and_archives_that_are_missing(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (published / "metadata" / "validation.txt").rename(published / "other.txt")
    assert run("prepare bbbc039", tmp_path / "out", "--source", published) == 2
    assert "expected the lists training.txt, validation.txt, test.txt; found test, train" in capsys.readouterr().err
    (published / "other.txt").rename(published / "metadata" / "validation.txt")
    lost = sorted((published / "masks").iterdir())[0]
    lost.unlink()
    assert run("prepare bbbc039", tmp_path / "out", "--source", published) == 2
    message = capsys.readouterr().err
    assert "has no mask" in message
    assert "training.txt: there is no image or no mask IXMtest_A00" in message
    assert run("prepare bbbc039", tmp_path / "out", "--source", published, "--skip-bad") == 0
    assert len(CocoDataset.load(tmp_path / "out" / "train.json")) == 3
    assert run("prepare bbbc039", tmp_path / "x", "--source", tmp_path / "absent") == 2
    assert "detseg download bbbc039" in capsys.readouterr().err


def test_a_split_of_ones_own_goes_before_the_published_one(published: Path, tmp_path: Path) -> None:
    assert run("prepare bbbc039", tmp_path / "out", "--source", published, "--folds", "2") == 0
    assert len(CocoDataset.load(tmp_path / "out" / "fold0_val.json")) == 4
