"""Names that others gave: where they may lead, and that no terminal or spreadsheet acts on them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.files.names import below, from_cell, matching, printable, to_cell
from detseg.files.table import parse_table, text_table, write_csv


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a.png"),
        ("b/a.png", "b/a.png"),
        ("ROOT/b/a.png", "b/a.png"),
        ("../root/a.png", "a.png"),
        ("..\\root\\a.png", "a.png"),
        ("b/../a.png", "b/../a.png"),
    ],
)
def test_what_leads_below_the_image_root_is_accepted(name: str, expected: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert below(name.replace("ROOT", str(root)), root) == expected


@pytest.mark.skipif(os.name == "nt", reason="a drive there")
def test_a_colon_is_a_letter_on_linux(tmp_path: Path) -> None:
    assert below("a:b.png", tmp_path) == "a:b.png"


@pytest.mark.parametrize(
    "name", ["/a.png", "../a.png", "..\\x\\a.png", "C:\\a.png", "C:/a.png", "\\\\host\\s\\a.png", "."]
)
def test_what_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--last-part|expected a path"):
        below(name, tmp_path / "root")


def test_names_of_300_letters_and_nul(tmp_path: Path) -> None:
    for name in ("a" * 300 + ".png", "a\0.png"):
        with pytest.raises(DataError, match="file_name"):
            below(name, tmp_path)


def test_cells_are_no_formulas_and_are_read_back(tmp_path: Path) -> None:
    names = ["=1+1", "+a", "-b", "@c", "plain", "it's", "-1.5", "'quoted"]
    write_csv(tmp_path / "t.csv", [["name", "n"], *([name, -1] for name in names)], "the table")
    with open(tmp_path / "t.csv", newline="") as file:
        cells = [row[0] for row in list(csv.reader(file))[1:]]
    assert cells == ["'=1+1", "'+a", "'-b", "'@c", "plain", "it's", "-1.5", "'quoted"]
    rows = parse_table((tmp_path / "t.csv").read_bytes(), "t.csv", ["name"]).rows
    assert [row.values["name"] for row in rows] == names
    assert to_cell(-1) == -1
    assert from_cell("'a") == "'a"


def test_control_characters_reach_neither_terminal_nor_table() -> None:
    assert printable("\x1b[31ma\u202egnp\n\tb") == "\\x1b[31ma\\x202egnp\n\tb"
    assert to_cell("a\x1b") == "a\\x1b"
    assert "\x1b" not in text_table([["a\x1b[2J\nb", "1"]])
    assert text_table([["a\nb", "1"]]) == "a b  1"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30), number, np.uint8)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "set.json"


def write(path: Path, names: list[str], **changes: object) -> None:
    images = [{"id": n + 1, "file_name": name, "height": 20, "width": 30} for n, name in enumerate(names)]
    rows = [
        {"id": n + 1, "image_id": n + 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
        for n in range(len(names))
    ]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cell"}], **changes}
    path.write_text(json.dumps(content))


def test_coco_files_of_other_machines(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(coco, [str(tmp_path / "images" / "0.png"), "..\\images\\1.png", "2.png"])
    words = ["prepare", "coco", "--annotations", str(coco), "--image-root", str(tmp_path / "images"), "--split", "1"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    names = [record.file_name for record in CocoDataset.load(tmp_path / "out" / "all.json").images]
    assert names == ["0.png", "1.png", "2.png"]
    write(coco, ["/home/other/0.png", "C:\\data\\1.png", "2.png"])
    assert main([*words, "--output", str(tmp_path / "out"), "--overwrite"]) == 2
    assert "--last-part" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "out"), "--overwrite", "--last-part"]) == 0
    names = [record.file_name for record in CocoDataset.load(tmp_path / "out" / "all.json").images]
    assert names == ["0.png", "1.png", "2.png"]


def test_names_that_begin_above_the_image_root_are_told_of_with_the_remedies(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(coco, ["images/0.png", "images/1.png"])
    words = ["prepare", "coco", "--annotations", str(coco), "--image-root", str(tmp_path / "images"), "--split", "1"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "(images/0.png, ...), but 0.png is" in message
    assert "--last-part" in message
    assert main([*words, "--output", str(tmp_path / "out"), "--last-part"]) == 0


def test_names_that_no_file_can_have_end_no_command_with_a_traceback(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "images")
    for name in ("a" * 300, "a\0b", "\ud800.png", "\x1b[2Ja.png"):
        write(coco, [name])
        words = ["prepare", "coco", "--annotations", str(coco), "--image-root", root, "--split", "1"]
        assert main([*words, "--output", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert "error: " in said
        assert "\x1b" not in said
    for arguments in (
        ["evaluate", "--predictions", "p" * 300, "--ground-truth", "g" * 300],
        ["inspect_data", "--data", "d" * 300, "--output", str(tmp_path / "o")],
        ["repair", "d" * 300 + ".json", str(tmp_path / "r.json")],
        ["prepare", "label_images", "--images", "i" * 300, "--labels", "l", "--output", str(tmp_path / "x")],
        ["prepare", "label_images", "--images", root, "--labels", "l" * 300, "--output", str(tmp_path / "x")],
        ["prepare", "dsb2018", "--source", "\udcff" * 3, "--output", str(tmp_path / "x")],
        ["visualize", "--predictions", "p" * 300, "--output", str(tmp_path / "v")],
    ):
        try:
            status = main(arguments)
        except SystemExit as error:
            status = error.code
        assert status == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_utf8(coco: Path, tmp_path: Path) -> None:
    from detseg.inference.image_list import find_images

    bad = os.fsencode(str(tmp_path / "images")) + b"/\xff.png"
    try:
        with open(bad, "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("the file system takes no such names")
    with pytest.raises(DataError, match="not UTF-8"):
        find_images([str(tmp_path / "images")])
    (tmp_path / "list.txt").write_bytes(b"a\0b.png\n")
    with pytest.raises(DataError, match="NUL"):
        find_images([str(tmp_path / "list.txt")])


def test_ids_as_others_write_them(coco: Path) -> None:
    annotation = {"id": 1.0, "image_id": 1.0, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
    images = [{"id": 1.0, "file_name": "0.png", "height": 20.0, "width": 30.0}]
    for ids, used in (([3.0, 5.0], 5), (["3", "5"], "5"), (["cell", "nucleus"], "nucleus")):
        categories = [{"id": ids[0], "name": "cell"}, {"id": ids[1], "name": "nucleus"}]
        write(coco, [], images=images, annotations=[{**annotation, "category_id": used}], categories=categories)
        dataset = CocoDataset.load(coco)
        assert [category.name for category in dataset.categories] == ["cell", "nucleus"]
        assert all(type(category.id) is int for category in dataset.categories)
        assert dataset.annotations(0).classes.tolist() == [1]
        assert next(dataset.raw_annotations())["category_id"] == dataset.categories[1].id
    mixed = [{"id": 1, "name": "cell"}, {"id": "2", "name": "nucleus"}]
    write(coco, [], images=images, annotations=[], categories=mixed)
    with pytest.raises(DataError, match="a string in all categories"):
        CocoDataset.load(coco)
    write(coco, [], images=images, annotations=[{**annotation, "category_id": True}])
    with pytest.raises(DataError, match="category_id"):
        CocoDataset.load(coco)


def test_boxes_alone_are_one_sentence_or_read_as_boxes(coco: Path) -> None:
    images = [{"id": 1, "file_name": "0.png", "height": 20, "width": 30}]
    rows = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [n, 2, 5.5, 6]} for n in range(1, 4)]
    rows[1]["segmentation"] = []
    write(coco, [], images=images, annotations=rows)
    with pytest.raises(DataError) as caught:
        CocoDataset.load(coco)
    assert str(caught.value).count("\n") == 1
    assert "3 of 3 annotations have a box (bbox) but no mask" in str(caught.value)
    boxes = CocoDataset.load(coco, boxes=True).read_sample
    (coco.parent / "0.png").write_bytes((coco.parent / "images" / "0.png").read_bytes())
    assert boxes(0).layers.boxes().tolist() == [[1, 2, 7, 8], [2, 2, 8, 8], [3, 2, 9, 8]]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a[1].png", ["a[1].png"]),  # the file, though a1.png matches
        ("a[12].png", ["a1.png", "a2.png"]),
        ("a[1]*", ["a[1].png"]),  # a name with brackets goes before one of several characters
        ("a[!1].png", ["a2.png"]),
        ("b[2]/*", ["b[2]/c3.png", "b[2]/c[3].png"]),
        ("b[2]/c[3].png", ["b[2]/c[3].png"]),
        ("b[2]/c[34].png", ["b[2]/c3.png"]),
        ("b[2]", ["b[2]"]),
        ("**/c3.png", ["b2/c3.png", "b[2]/c3.png"]),
        ("s*r.png", ["s*r.png"]),
        ("x[1].png", []),
        ("none/*.png", []),
        ("b[2]/none/*.png", []),
        ("", []),
    ],
)
def test_paths_with_brackets_are_taken_as_they_are_first(tmp_path, monkeypatch, pattern, expected):
    for name in ("a[1].png", "a1.png", "a2.png", "b[2]/c[3].png", "b[2]/c3.png", "b2/c3.png", "s*r.png", "star.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [path.as_posix() for path in matching(pattern)] == expected
    if pattern:
        assert [path.relative_to(tmp_path).as_posix() for path in matching(str(tmp_path / pattern))] == expected
