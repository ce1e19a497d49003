"""Bad tables and split lists through the command line: the line, the remedy, status 2; usual separators are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.files.table import parse_table

GOOD = "image,kind,note\na,x,1\nb,y,2\nc,x,3\nd,y,4\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images with one object each."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in "abcd":
            Image.fromarray(np.eye(5, dtype=np.uint8)).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def prepare(data: Path, *options: str | Path) -> int:
    words = ["--images", data / "images", "--labels", data / "labels", "--output", data / "out", *options]
    return main(["prepare", "label_images", *map(str, words)])


def with_table(data: Path, content: str | bytes, *options: str) -> int:
    raw = content if isinstance(content, bytes) else content.encode()
    (data / "kinds table.csv").write_bytes(raw)
    return prepare(
        data, "--table", data / "kinds table.csv", "--stratify-by", "kind", "--split", "0.5", "0.5", *options
    )


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.replace(",", ";"),
        GOOD.replace(",", "\t"),
        GOOD.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.encode("utf-16"),
        "\n" + GOOD.replace("\n", "\n\n"),
        GOOD.replace("a,", '"a", ', 1).replace("1", '"a; b, c"'),
        GOOD.replace(",note", ',"a;b"').replace(",", ";", 0),
        GOOD.replace("a,", "images/a.png,").replace("images/", ""),
    ],
    ids=["commas", "semicolons", "tabs", "CRLF", "BOM", "UTF-16", "blank", "quotes", "other in quotes", "suffix"],
)
def test_tables_that_are_unambiguous_are_read(data: Path, content: str | bytes) -> None:
    assert with_table(data, content) == 0
    for part in ("train", "val"):
        dataset = CocoDataset.load(data / "out" / f"{part}.json")
        assert sorted(record.metadata["group"] for record in dataset.images) == ["x", "y"]


BAD_TABLES = {
    "no column": (GOOD.replace("kind", "type"), "line 1: there is no column 'kind'; columns are: image, type, note"),
    "spaces between": (GOOD.replace(",", "  "), "(expected commas, semicolons, or tabs between them)"),
    "empty": ("", "the table is empty"),
    "blank": ("\n \n", "the table is empty"),
    "column twice": (GOOD.replace("note", "kind"), "line 1: the column 'kind' occurs twice"),
    "not UTF-8": (GOOD.encode().replace(b"b,y", b"b,\xff"), "line 3: cannot be read as CSV in UTF-8"),
    "stray quotation mark": (GOOD.replace("c,", '"c,'), "look for a stray quotation mark"),
    "a NUL": (GOOD.replace("c,", "\0c,"), "kinds table.csv"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_what_is_no_table_is_refused(data: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    content, text = BAD_TABLES[case]
    assert with_table(data, content) == 2
    message = capsys.readouterr().err
    assert "kinds table.csv" in message
    assert text in message
    assert not (data / "out").exists()


BAD_ROWS = {
    "too few fields": (GOOD.replace("b,y,2", "b"), "line 3: has 1 fields; expected 3"),
    "too many fields": (GOOD.replace("b,y,2", "b,y,2,5"), "line 3: has 4 fields; expected 3"),
    "no value": (GOOD.replace("b,y", "b,"), "b.png: "),
    "no row": (GOOD.replace("b,y,2\n", ""), "b.png: "),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_by_its_line_and_its_image_left_out_on_demand(
    data: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    content, text = BAD_ROWS[case]
    assert with_table(data, content) == 2
    message = capsys.readouterr().err
    assert text in message
    assert "--skip-bad" in message
    assert not (data / "out").exists()
    assert with_table(data, content, "--skip-bad") == 0
    datasets = [CocoDataset.load(data / "out" / f"{part}.json") for part in ("train", "val")]
    names = sorted(record.file_name for dataset in datasets for record in dataset.images)
    assert names == ["a.png", "c.png", "d.png"]
    assert text in (data / "out" / "skipped.txt").read_text()


def test_two_values_of_one_image_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert with_table(data, GOOD + "a,y,5\n") == 2
    assert "line 6: a has two values, x and y" in capsys.readouterr().err


def test_options_that_need_each_other(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(data, "--stratify-by", "kind") == 2
    assert "--stratify-by kind needs --table CSV" in capsys.readouterr().err
    assert prepare(data, "--table", data / "absent.csv", "--stratify-by", "kind") == 2
    assert "there is no such table" in capsys.readouterr().err
    assert prepare(data, "--key", "image") == 2
    assert "--key COLUMN needs --table" in capsys.readouterr().err


def test_columns_of_a_table_become_fields_of_the_images(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = data / "plates.csv"
    # `bound` is of objects, `height` is the COCO file's own, c has no dose, d no row.
    table.write_text("image,dose,well,bound,height\na,low,A1,1,9\na,low,A1,2,9\nb.png,high,B2,1,9\nc.png,,C3,1,9\n")
    assert prepare(data, "--table", table, "--split", "1") == 0
    records = CocoDataset.load(data / "out" / "all.json").images
    fields = {record.file_name: {**record.metadata, "height": record.height} for record in records}
    assert fields == {
        "a.png": {"dose": "low", "well": "A1", "height": 5},
        "b.png": {"dose": "high", "well": "B2", "height": 5},
        "c.png": {"well": "C3", "height": 5},
        "d.png": {"height": 5},
    }
    assert "no row for 1 of 4 images" in caplog.text

    words = ["--table", table, "--stratify-by", "well", "--classes-from", "column:dose", "--skip-bad", "--overwrite"]
    assert prepare(data, "--split", "1", *words) == 0
    dataset = CocoDataset.load(data / "out" / "all.json")
    assert dataset.class_names == ["high", "low"]
    assert [record.metadata for record in dataset.images] == [
        {"dose": "low", "well": "A1", "group": "A1"},
        {"dose": "high", "well": "B2", "group": "B2"},
    ]


def test_a_part_that_lost_its_images_is_pointed_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = ["--split", "0.75", "0.25"]
    assert prepare(data, *split) == 0
    (only,) = CocoDataset.load(data / "out" / "val.json").images
    only.path.write_bytes(b"")
    capsys.readouterr()
    assert prepare(data, *split, "--skip-bad", "--overwrite") == 0
    assert "WARNING: val.json has no images left" in capsys.readouterr().out


def test_a_table_of_other_images_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "plates.csv").write_text("number,image\n1,a\n2,b\n")
    assert prepare(data, "--table", data / "plates.csv") == 2
    said = capsys.readouterr().err
    assert "has none of the images: its column 'number' has '1', '2', an image is" in said
    assert prepare(data, "--table", data / "plates.csv", "--key", "image") == 0


def test_bad_split_lists(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "lists").mkdir()
    assert prepare(data, "--split-lists", data / "lists") == 2
    assert "no lists found" in capsys.readouterr().err
    (data / "lists" / "train.txt").write_text("a\nb\nzz\n")
    (data / "lists" / "val.txt").write_text("c\n")
    assert prepare(data, "--split-lists", data / "lists") == 2
    assert "train.txt: there is no image zz" in capsys.readouterr().err
    (data / "lists" / "val.txt").write_text("b\n")
    assert prepare(data, "--split-lists", data / "lists", "--skip-bad") == 2
    assert "b is in train.txt already" in capsys.readouterr().err
    (data / "lists" / "val.txt").write_bytes(b"\xff\xfe\x00c")
    assert prepare(data, "--split-lists", data / "lists") == 2
    assert "val.txt" in capsys.readouterr().err


def test_only_images_of_the_lists_need_a_row_of_the_table(data: Path) -> None:
    (data / "l_train.txt").write_text("a\nc\n")
    table = GOOD.replace("b,y,2\n", "")
    assert with_table(data, table) == 2
    (data / "kinds.csv").write_text(table)
    options = ["--table", data / "kinds.csv", "--stratify-by", "kind", "--split-lists", data / "l"]
    assert prepare(data, *options) == 0
    assert [record.metadata["group"] for record in CocoDataset.load(data / "out" / "train.json").images] == ["x", "x"]


def test_impossible_splits(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, text in {
        ("--split", "0.5", "0.6"): "with the sum 1",
        ("--split", "nan", "0.5"): "with the sum 1",
        ("--split", "0.5", "nan"): "with the sum 1",
        ("--split", "-1", "2"): "positive",
        ("--folds", "1"): "expected 2 to the number of images",
        ("--folds", "9"): "4 images cannot be split into 9 folds",
    }.items():
        assert prepare(data, *options) == 2
        assert text in capsys.readouterr().err
    assert not (data / "out").exists()


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text('ab,;\t"\n\r \ufeff', max_size=40).map(str.encode)))
def test_any_bytes_are_a_table_or_a_data_error(content: bytes) -> None:
    try:
        table = parse_table(content, "t.csv", ["a"])
    except DataError:
        return
    assert "a" in table.columns
    assert all(set(row.values) == set(table.columns) for row in table.rows)
