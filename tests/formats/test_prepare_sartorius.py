"""The Sartorius competition as it ships: masks equal to a direct decoding, classes, cell types in every part."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.formats.sartorius import sample_fields
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 20, 30
COLUMNS = ["id", "annotation", "width", "height", "cell_type"]  # in the competition's order
COLUMNS += ["plate_time", "sample_date", "sample_id", "elapsed_timedelta"]
KINDS = ("cort", "shsy5y", "astro")


def decode_by_rows(text: str, height: int, width: int) -> np.ndarray:
    mask = np.zeros(height * width, dtype=bool)
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        mask[start - 1 : start - 1 + length] = True
    return mask.reshape(height, width)


def rows_of(index: int) -> list[dict[str, str]]:
    """A cell, one that overlaps it, and one whose run goes on in the next row."""
    kind = KINDS[index % 3]
    first = 40 + index
    runs = [f"{first} 5 {first + WIDTH} 5", f"{first + 2} 6 {first + 2 + WIDTH} 2", "1 1 300 70 600 1"]
    fixed = {"width": str(WIDTH), "height": str(HEIGHT), "cell_type": kind, "plate_time": f"{index}h"}
    fixed |= {"sample_date": "2019-06-16", "sample_id": f"{kind}[x]_{index}", "elapsed_timedelta": "0 days"}
    return [{"id": f"{index:04d}", "annotation": text, **fixed} for text in runs]


ROWS = [row for index in range(12) for row in rows_of(index)]


def write_csv(root: Path, rows: list[dict[str, str]], separator: str = ",", encoding: str = "utf-8") -> None:
    with open(root / "train.csv", "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """Twelve labelled images, two without labels, and what else the competition brings along."""
    root = tmp_path / "sartorius"
    for folder in ("train", "train_semi_supervised", "test", "LIVECell_dataset_2021/train"):
        (root / folder).mkdir(parents=True)
    for index in range(12):
        Image.fromarray(np.full((HEIGHT, WIDTH), index, np.uint8)).save(root / "train" / f"{index:04d}.png")
    for name in ("astro[hippo]_D1_Ph_4", "mouse_1"):
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(root / "train_semi_supervised" / f"{name}.png")
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(root / "test" / "t.png")
    (root / "LIVECell_dataset_2021" / "train" / "train.csv").write_text("another table")
    write_csv(root, ROWS)
    return root


def prepare(source: Path, output: Path, *options: str | Path) -> int:
    return main(["prepare", "sartorius", *map(str, ("--source", source, "--output", output, *options))])


@pytest.mark.parametrize("as_zip", [False, True])
def test_masks_classes_groups_and_unlabelled_images(shipped: Path, tmp_path: Path, as_zip: bool) -> None:
    source = shipped
    if as_zip:
        source = Path(shutil.make_archive(str(tmp_path / "s"), "zip", tmp_path, shipped.name))
    assert prepare(source, tmp_path / "out", "--split", "0.5", "0.5") == 0
    seen = []
    for part in ("train", "val"):
        dataset = CocoDataset.load(tmp_path / "out" / f"{part}.json")
        assert [(category.id, category.name) for category in dataset.categories] == [
            (1, "shsy5y"),
            (2, "astro"),
            (3, "cort"),
        ]
        assert sorted(record.metadata["group"] for record in dataset.images) == sorted(KINDS * 2)
        for index, record in enumerate(dataset.images):
            number = int(Path(record.file_name).stem)
            seen.append(number)
            rles, classes, _ = dataset.annotations(index)
            expected = [decode_by_rows(row["annotation"], HEIGHT, WIDTH) for row in rows_of(number)]
            np.testing.assert_array_equal([rle_codec.decode(rle) for rle in rles], expected)
            assert {dataset.class_names[index] for index in classes} == {KINDS[number % 3]}
            assert record.metadata["plate_time"] == f"{number}h"
            assert (dataset.read_image(index) == number).all()
    assert sorted(seen) == list(range(12))
    unlabelled = CocoDataset.load(tmp_path / "out" / "unlabelled.json")
    assert unlabelled.num_objects == 0
    assert [record.metadata.get("group") for record in unlabelled.images] == ["astro", None]
    unlabelled.check_images_exist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("astros[cereb]_A1_1_Vessel-361_Ph_1", ("astro", "cereb", "A1", "Vessel-361")),
        ("astro[hippo]_D1-4_Vessel-361_Ph_4", ("astro", "hippo", "D1", "Vessel-361")),
        ("shsy5y[diff]_E10-4_Vessel-714_Ph_3_00d01h00m", ("shsy5y", "diff", "E10", "Vessel-714")),
        ("Cort[6 days]_vessel-9_B12", ("cort", "6 days", "B12", "vessel-9")),
        ("shsy5y[sim]_plate2_04cd81dfb245", ("shsy5y", "sim", None, "plate2")),
        ("astro[sim]_plate0_Vessel-304_Ph_2", ("astro", "sim", None, "plate0")),
        ("microglia[]_A1_Vessel-2", (None, None, "A1", "Vessel-2")),
        ("cort[debris]_1", ("cort", "debris", None, None)),
    ],
)
def test_names_of_samples(name: str, expected: tuple[str | None, ...]) -> None:
    fields = sample_fields(name)
    assert fields.pop("sample_id") == name
    assert tuple(fields.get(key) for key in ("cell_type", "treatment", "well", "plate")) == expected
    assert not set(fields) - {"cell_type", "treatment", "well", "plate"}


@pytest.mark.parametrize("name", ["mouse_1", "", "[", "astro[", "astro]_A1", "astro[hippo]", "0030fd0e6378"])
def test_names_that_are_none_of_samples_tell_nothing(name: str) -> None:
    assert sample_fields(name) == {}


def test_plates_and_wells_of_labelled_and_unlabelled_images(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(
        shipped / "train_semi_supervised" / "astros[cereb]_A1_1_Vessel-361_Ph_1.png"
    )
    write_csv(shipped, [{**row, "sample_id": f"x[diff]_B2-1_Vessel-{int(row['id']) % 2}_Ph_1"} for row in ROWS])
    assert prepare(shipped, tmp_path / "out", "--stratify-by", "plate") == 0
    out = capsys.readouterr().out
    assert "1 of 3 unlabelled images have no cell type in their names (train_semi_supervised/mouse_1)" in out
    assert "1 of 3 unlabelled images have no plate and well in their names" in out
    labelled = CocoDataset.load(tmp_path / "out" / "train.json").images
    assert {(record.metadata["well"], record.metadata["plate"]) for record in labelled} == {
        ("B2", "Vessel-0"),
        ("B2", "Vessel-1"),
    }
    by_name = {
        Path(record.file_name).stem: record.metadata
        for record in CocoDataset.load(tmp_path / "out" / "unlabelled.json").images
    }
    cereb = by_name["astros[cereb]_A1_1_Vessel-361_Ph_1"]
    assert cereb["cell_type"] == cereb["group"] == "astro"
    assert (cereb["sample_id"], cereb["well"], cereb["plate"]) == (
        "astros[cereb]_A1_1_Vessel-361_Ph_1", "A1", "Vessel-361",
    )  # fmt: skip
    assert not {"cell_type", "group", "plate", "well"} & set(by_name["mouse_1"])


def test_another_separator_and_encoding_are_told(shipped: Path, tmp_path: Path) -> None:
    write_csv(shipped, ROWS, ";", "utf-16")
    assert prepare(shipped, tmp_path / "out", "--folds", "2") == 0
    assert CocoDataset.load(tmp_path / "out" / "fold0_train.json").num_objects == 18


def test_columns_of_the_csv_itself_can_stratify(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(shipped, tmp_path / "out", "--stratify-by", "sample_date") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "val.json")
    assert {record.metadata["group"] for record in dataset.images} == {"2019-06-16"}
    assert prepare(shipped, tmp_path / "other", "--stratify-by", "colour") == 2
    assert "without a table expected one of cell_type, plate_time" in capsys.readouterr().err


BAD_ROWS = {
    "another image": ({"id": "9999"}, "line 6 (image 9999): there is no image of this name in train"),
    "unknown class": ({"cell_type": "neuron"}, "its cell_type is 'neuron'; expected one of shsy5y, astro, cort"),
    "another size": ({"width": "31"}, "is for '20' x '31' pixels"),
    "no number of pixels": ({"height": "tall"}, "is for 'tall' x '30' pixels"),
    "beyond the image": ({"annotation": "600 2"}, "the run 600 2 exceeds the image"),
    "empty": ({"annotation": ""}, "the mask is empty"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_and_left_out_on_demand(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    values, text = BAD_ROWS[case]
    write_csv(shipped, [*ROWS[:4], {**ROWS[4], **values}, *ROWS[5:]])
    assert prepare(shipped, tmp_path / "out") == 2
    message = capsys.readouterr().err
    for part in ("1 problem to fix", "train.csv: line 6", text, "--skip-bad"):
        assert part in message
    assert prepare(shipped, tmp_path / "out", "--split", "1", "--skip-bad") == 0
    assert CocoDataset.load(tmp_path / "out" / "all.json").num_objects == 35
    assert text in (tmp_path / "out" / "skipped.txt").read_text()


def test_an_image_without_rows_is_not_taken_for_empty(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(shipped, ROWS[:-3])
    assert prepare(shipped, tmp_path / "out") == 2
    assert "image 0011" in (message := capsys.readouterr().err)
    assert "has no row for it" in message
    write_csv(shipped, [*ROWS[:-3], {**ROWS[-3], "annotation": ""}])
    assert prepare(shipped, tmp_path / "out", "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert dataset.objects_per_image().sum(axis=1).tolist() == [3] * 11 + [0]


def test_images_without_rows_are_empty_where_that_is_said_and_an_exported_table_comes_back(
    shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_csv(shipped, ROWS[:-3])
    assert prepare(shipped, tmp_path / "out", "--split", "1", "--allow-empty") == 0
    before = CocoDataset.load(tmp_path / "out" / "all.json")
    assert before.objects_per_image().sum(axis=1).tolist() == [3] * 11 + [0]
    words = ["--input", tmp_path / "out" / "all.json", "--format", "sartorius", "--output", shipped, "--overwrite"]
    assert main(["export", *map(str, words)]) == 0
    capsys.readouterr()
    assert prepare(shipped, tmp_path / "again", "--split", "1") == 2
    assert "--allow-empty" in capsys.readouterr().err
    assert prepare(shipped, tmp_path / "again", "--split", "1", "--allow-empty") == 0
    after = CocoDataset.load(tmp_path / "again" / "all.json")
    for index in range(len(before)):
        assert before.annotations(index)[0] == after.annotations(index)[0]


def test_what_is_no_sartorius_is_refused(shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (shipped / "train.csv").read_text()
    for content, expected in {
        text.replace("annotation", "mask", 1): "there is no column 'annotation'; columns are: id, mask, width",
        text.replace("\n0001,", "\n0001,extra,", 1): "has 10 fields; expected 9",
    }.items():
        (shipped / "train.csv").write_text(content)
        assert prepare(shipped, tmp_path / "out") == 2
        assert expected in capsys.readouterr().err
    (shipped / "train.csv").unlink()
    (shipped / "LIVECell_dataset_2021" / "train" / "train.csv").unlink()
    assert prepare(shipped, tmp_path / "out") == 2
    assert "there is no train.csv" in capsys.readouterr().err


def test_real_competition_layout_from_the_zip_itself(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    archive = shared_data("sartorius_sim.zip")
    assert prepare(archive, tmp_path / "out") == 0
    with zipfile.ZipFile(archive) as file:
        rows = list(csv.DictReader(io.TextIOWrapper(file.open("train.csv"), encoding="utf-8")))
    by_image: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_image.setdefault(row["id"], []).append(row)
    total = 0
    for part in ("train", "val", "test"):
        dataset = CocoDataset.load(tmp_path / "out" / f"{part}.json")
        dataset.check_images_exist()
        total += dataset.num_objects
        for index, record in enumerate(dataset.images):
            expected = by_image.pop(Path(record.file_name).stem)
            rles, classes, _ = dataset.annotations(index)
            assert [dataset.class_names[index] for index in classes] == [row["cell_type"] for row in expected]
            for rle, row in list(zip(rles, expected, strict=True))[:: 1 if index % 4 == 0 else 20]:
                mask = decode_by_rows(row["annotation"], 520, 704)
                assert rle["counts"] == coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]
    assert total == len(rows) == 11_422
    assert not by_image
    unlabelled = json.loads((tmp_path / "out" / "unlabelled.json").read_text())
    assert len(unlabelled["images"]) == 30
    assert unlabelled["annotations"] == []
