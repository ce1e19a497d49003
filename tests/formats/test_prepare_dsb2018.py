"""The Data Science Bowl as it ships, in every form: masks equal to the files', bad rows named and left out."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.run_lengths import read_pairs
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 30, 40


def run_lengths(mask: np.ndarray, order: str = "F") -> str:
    """The runs of a mask as the bowl writes them, pixel by pixel."""
    runs: list[list[int]] = []
    for position in np.flatnonzero(mask.ravel(order=order)) + 1:
        if runs and runs[-1][0] + runs[-1][1] == position:
            runs[-1][1] += 1
        else:
            runs.append([int(position), 1])
    return " ".join(f"{start} {length}" for start, length in runs)


def masks_of(index: int) -> list[np.ndarray]:
    """Two blocks, a bar that wraps from one column into the next, and one object of two pieces."""
    masks = np.zeros((4, HEIGHT, WIDTH), dtype=bool)
    masks[0, 2:9, 3 + index : 9 + index] = True
    masks[1, 12:20, 5:25] = True
    masks[2, :, 30:32] = True
    masks[3, 0, 0] = masks[3, -1, -1] = True
    return list(masks)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """stage1_train with ten RGBA images."""
    root = tmp_path / "stage1_train"
    for index in range(10):
        folder = root / f"id{index}"
        (folder / "images").mkdir(parents=True)
        (folder / "masks").mkdir()
        Image.fromarray(np.full((HEIGHT, WIDTH, 4), index, np.uint8)).save(folder / "images" / f"id{index}.png")
        for number, mask in enumerate(masks_of(index)):
            Image.fromarray(mask * np.uint8(255)).save(folder / "masks" / f"{number:02d}.png")
    return root


def write_zip(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
        archive.writestr("__MACOSX/._id0.png", b"what macOS adds")
    return path


def write_csv(path: Path, rows: Sequence[str], header: str = "ImageId,EncodedPixels") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def labels_csv(path: Path) -> Path:
    return write_csv(path, [f"id{index},{run_lengths(mask)}" for index in range(10) for mask in masks_of(index)])


def prepare(source: Path, output: Path, *options: str | Path) -> int:
    return main(["prepare", "dsb2018", *map(str, ("--source", source, "--output", output, *options))])


def assert_pixel_equal(dataset: CocoDataset) -> None:
    for index, record in enumerate(dataset.images):
        number = int(Path(record.file_name).stem.removeprefix("id"))
        rles, classes, crowd = dataset.annotations(index)
        decoded = [rle_codec.decode(rle) for rle in rles]
        np.testing.assert_array_equal(decoded, masks_of(number))
        assert not classes.any()
        assert not crowd.any()


@pytest.mark.parametrize("form", ["folder", "folder above", "zip", "zip without stage1_train", "csv", "csv, flat zip"])
def test_every_form_gives_the_same_masks_and_readable_images(shipped: Path, tmp_path: Path, form: str) -> None:
    source, options = shipped, ["--split", "1"]
    if form == "folder above":
        source = tmp_path
    elif form.startswith("zip"):
        source = write_zip(shipped, tmp_path / "s.zip", "" if "without" in form else "stage1_train/")
    elif form.startswith("csv"):
        options += ["--run-lengths", str(labels_csv(tmp_path / "stage1_train_labels.csv"))]
    if "flat" in form:
        flat = tmp_path / "flat"
        flat.mkdir()
        for image in shipped.glob("*/images/*.png"):
            image.rename(flat / image.name)
        source = write_zip(flat, tmp_path / "s.zip")
    assert prepare(source, tmp_path / "out", *options) == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert dataset.class_names == ["nucleus"]
    assert len(dataset) == 10
    assert_pixel_equal(dataset)
    for index in range(10):
        number = int(Path(dataset.images[index].file_name).stem.removeprefix("id"))
        assert (dataset.read_sample(index).image == number).all()
    unpacked = tmp_path / "out" / "images"
    assert unpacked.exists() == source.name.endswith(".zip")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_the_stage_1_solution_with_sizes_and_ignored_images(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"id{index},{run_lengths(mask)},{HEIGHT},{WIDTH},{'Ignored' if index == 3 else 'Private'}"
        for index in range(9)
        for mask in masks_of(index)
    ]
    rows.append(f"id9,,{HEIGHT},{WIDTH},Public")
    header = "ImageId,EncodedPixels,Height,Width,Usage"
    solution = write_csv(tmp_path / "solution.csv", rows, header)
    assert prepare(shipped, tmp_path / "out", "--run-lengths", solution, "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert {Path(record.file_name).stem for record in dataset.images} == {f"id{n}" for n in range(10)} - {"id3"}
    assert dataset.objects_per_image()[-1].sum() == 0, "a single row without run-lengths is an image without objects"

    rows[0] = rows[0].replace(f",{HEIGHT},{WIDTH},", f",{WIDTH},{HEIGHT},")
    write_csv(solution, rows, header)
    assert prepare(shipped, tmp_path / "other", "--run-lengths", solution) == 2
    message = capsys.readouterr().err
    assert "line 2 (image id0): is for '40' x '30' pixels" in message
    assert "30 x 40" in message


BAD_RUNS = {
    "1 2 3": "expected pairs",
    "one 2": "'one' is not a run-length",
    "-5 3": "'-5' is not a run-length",
    "1.5 2": "not a run-length",
    "0 3": "first pixel, which is 1",
    "5 0": "no length",
    "1200 2": "exceeds the image, which has 1200 pixels",
    "1 1 99999999999999999999 1": "not a run-length",
    "50 3 10 3": "ascending",
    "50 3 52 3": "overlaps",
}


@pytest.mark.parametrize("runs", BAD_RUNS)
def test_bad_run_lengths_are_told(runs: str) -> None:
    with pytest.raises(DataError, match=re.escape(BAD_RUNS[runs])):
        read_pairs(runs, HEIGHT * WIDTH)


def test_bad_run_lengths_are_named_by_line_and_left_out_on_demand(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = labels_csv(tmp_path / "labels.csv")
    rows = table.read_text().splitlines()
    rows[6] = "id1,1 2 3"
    write_csv(table, rows[1:])
    assert prepare(shipped, tmp_path / "out", "--run-lengths", table) == 2
    message = capsys.readouterr().err
    for part in ("1 problem", "line 7 (image id1)", BAD_RUNS["1 2 3"], "--skip-bad"):
        assert part in message
    assert not (tmp_path / "out").exists(), "nothing is written where something is wrong"
    assert prepare(shipped, tmp_path / "out", "--run-lengths", table, "--split", "1", "--skip-bad") == 0
    assert "1 problem" in capsys.readouterr().out
    assert "line 7 (image id1)" in (tmp_path / "out" / "skipped.txt").read_text()
    assert CocoDataset.load(tmp_path / "out" / "all.json").num_objects == 39


def test_bad_masks_and_images_are_named_and_left_out_on_demand(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shipped / "id0" / "masks" / "00.png").write_bytes(b"")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(shipped / "id1" / "masks" / "01.png")
    Image.fromarray(np.ones((WIDTH, HEIGHT), np.uint8)).save(shipped / "id2" / "masks" / "02.png")
    for mask in (shipped / "id3" / "masks").iterdir():
        mask.write_bytes(b"x")
    for mask in (shipped / "id4" / "masks").iterdir():
        mask.unlink()
    (shipped / "id5" / "images" / "other.png").write_bytes((shipped / "id5" / "images" / "id5.png").read_bytes())
    (shipped / "id6" / "images" / "id6.png").write_bytes(b"\x89PNG")
    assert prepare(shipped, tmp_path / "out") == 2
    assert "second image of id5" in capsys.readouterr().err
    (shipped / "id5" / "images" / "other.png").unlink()
    assert prepare(shipped, tmp_path / "out") == 2
    message = capsys.readouterr().err
    for part in (
        "6 problems",
        "00.png: the file is empty",
        "01.png: the mask is empty",
        "has 40 x 30 pixels (height x width), its image 30 x 40",
        "id3.png: none of its 4 masks can be used",
        "id4.png: has no masks; expected id4/masks/*.png",
        "id6.png: the",
    ):
        assert part in message
    assert prepare(shipped, tmp_path / "out", "--split", "1", "--skip-bad") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert len(dataset) == 7
    assert dataset.num_objects == 7 * 4 - 3
    assert len((tmp_path / "out" / "skipped.txt").read_text().splitlines()) == 6


@pytest.mark.parametrize("form", ["files", "csv"])
def test_images_without_nuclei_are_told_or_allowed(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    options = ["--split", "1"]
    if form == "csv":
        rows = labels_csv(tmp_path / "labels.csv").read_text().splitlines()[1:]
        kept = [row for row in rows if not row.startswith("id4,")]
        options += ["--run-lengths", str(write_csv(tmp_path / "labels.csv", kept))]
    for file in (shipped / "id4" / "masks").iterdir():
        file.unlink()
    assert prepare(shipped, tmp_path / "out", *options) == 2
    assert "1 problem to fix" in (message := capsys.readouterr().err)
    assert "id4" in message
    assert "--allow-empty" in message
    assert prepare(shipped, tmp_path / "out", *options, "--allow-empty") == 0
    counts = CocoDataset.load(tmp_path / "out" / "all.json").objects_per_image().sum(axis=1)
    assert np.flatnonzero(counts == 0).tolist() == [4]


def test_what_is_no_stage1_train_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("stage1_train.zip", b"PK")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../id/images/id.png", b"")
    for source, text in {
        "absent": "no such folder or zip",
        "empty": "there are no images",
        "text.zip": "neither a folder nor a complete zip",
        "outer.zip": "it contains stage1_train.zip: unpack that",
        "evil.zip": "lead out of it",
    }.items():
        assert prepare(tmp_path / source, tmp_path / "out") == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_zip_that_is_cut_off_or_damaged_is_refused(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_zip(shipped, tmp_path / "s.zip")
    data = bytearray(archive.read_bytes())
    archive.write_bytes(data[: len(data) // 2])
    assert prepare(archive, tmp_path / "out") == 2
    assert "complete zip archive" in capsys.readouterr().err
    position = data.index(b"IDAT") + 6
    data[position] ^= 255
    archive.write_bytes(data)
    assert prepare(archive, tmp_path / "out") == 2
    assert "cannot be unpacked" in capsys.readouterr().err


def test_unpacking_replaces_nothing_and_goes_on_where_it_was_stopped(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_zip(shipped, tmp_path / "s.zip")
    assert prepare(archive, tmp_path / "out") == 0
    images = sorted((tmp_path / "out" / "images").rglob("*.png"))
    images[0].unlink()
    for part in ("train", "val", "test"):
        (tmp_path / "out" / f"{part}.json").unlink()
    assert prepare(archive, tmp_path / "out") == 0
    assert images[0].is_file()
    for part in ("train", "val", "test"):
        (tmp_path / "out" / f"{part}.json").unlink()
    images[0].write_bytes(b"mine")
    capsys.readouterr()
    assert prepare(archive, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "1 files that are not those of" in message
    assert images[0].read_bytes() == b"mine"
    assert not (tmp_path / "out" / "train.json").exists()
    assert prepare(archive, tmp_path / "out", "--overwrite") == 0
    assert images[0].read_bytes() != b"mine"


def test_real_sample_from_the_zip_itself(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    archive = shared_data("dsb2018_raw_sample.zip")
    assert prepare(archive, tmp_path / "out", "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert len(dataset) == 42
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".png"))
        assert dataset.num_objects == sum("/masks/" in name for name in names)
        for index, record in enumerate(dataset.images):
            folder = record.file_name.split("/images/")[0] + "/masks/"
            shipped = [np.asarray(Image.open(file.open(name))) > 0 for name in names if name.startswith(folder)]
            decoded = [rle_codec.decode(rle) for rle in dataset.annotations(index).rles]
            np.testing.assert_array_equal(decoded, shipped)
            np.testing.assert_array_equal(
                dataset.read_image(index), np.asarray(Image.open(file.open(record.file_name)).convert("RGB"))
            )
    root = json.loads((tmp_path / "out" / "all.json").read_text())["info"]["image_root"]
    assert root == "images"
