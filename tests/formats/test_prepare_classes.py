"""Classes by folder, column, table and map: right for every object, the same in every reader, all gaps told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readers_for_tests import expected_masks, labels_of, masks_by_class, run, write_image

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.classes import parse_class_rule, read_class_map


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Label images in folders of their kind."""
    for kind in ("neuron", "astro"):
        for index in range(2):
            write_image(tmp_path / "images" / kind / f"{kind}{index}.png", index)
            (tmp_path / "labels" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels_of(index)).save(tmp_path / "labels" / kind / f"{kind}{index}.png")
    return tmp_path


def prepare(cells: Path, *words: object) -> int:
    options = ("--images", cells / "images", "--labels", cells / "labels", "--split", "1", "--overwrite")
    return run("prepare label_images", cells / "out", *options, *words)


def classes_of(cells: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the classes, and those of the objects of every image."""
    dataset = CocoDataset.load(cells / "out" / "all.json")
    return dataset.class_names, {
        record.file_name: [dataset.class_names[c] for c in dataset.annotations(index).classes]
        for index, record in enumerate(dataset.images)
    }


def test_the_folder_is_the_class(cells: Path) -> None:
    assert prepare(cells, "--classes-from", "folder") == 0
    names, found = classes_of(cells)
    assert names == ["astro", "neuron"]
    assert found == {f"{kind}/{kind}{index}.png": [kind] * 4 for kind in ("astro", "neuron") for index in range(2)}


def test_folders_are_renamed_joined_and_left_out_by_a_map(cells: Path) -> None:
    (cells / "map.json").write_text(json.dumps({"neuron": "cell", "astro": None}))
    assert prepare(cells, "--classes-from", "folder", f"map:{cells / 'map.json'}") == 0
    names, found = classes_of(cells)
    assert names == ["cell"]
    assert [len(found[f"{kind}/{kind}0.png"]) for kind in ("neuron", "astro")] == [4, 0]


def test_a_table_of_images(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cells / "kinds.csv").write_text("file,kind\nneuron0.png,b\nneuron1,a\nastro/astro0.png,b\nastro1,a\n")
    assert prepare(cells, "--classes-from", f"csv:{cells / 'kinds.csv'}:kind") == 0
    names, found = classes_of(cells)
    assert names == ["a", "b"]
    assert {words[0] for name, words in found.items() if "0" in name} == {"b"}
    (cells / "kinds.csv").write_text("kind,file\nb,neuron0.png\na,neuron1\nb,astro0\nb,astro0\n")
    words = ("--classes-from", f"csv:{cells / 'kinds.csv'}:kind", "--key", "file")
    assert prepare(cells, *words) == 2
    assert f"astro1.png: {cells / 'kinds.csv'} has no kind for it" in capsys.readouterr().err
    assert prepare(cells, *words, "--skip-bad") == 0
    assert len(classes_of(cells)[1]) == 3


def test_a_table_of_objects(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"{kind}{index},{label},{'small' if label < 9 else 'large'}"
        for kind in ("neuron", "astro")
        for index in range(2)
        for label in (4, 7, 9, 300)
    ]
    (cells / "objects.csv").write_text("\n".join(["image,label,size", *rows]))
    words = ("--classes-from", f"csv:{cells / 'objects.csv'}:size")
    assert prepare(cells, *words) == 0
    dataset = CocoDataset.load(cells / "out" / "all.json")
    expected = expected_masks(labels_of(0), {4: "small", 7: "small", 9: "large", 300: "large"})
    assert masks_by_class(dataset, 0) == expected
    (cells / "objects.csv").write_text("\n".join(["image,label,size", *rows[1:], "neuron1,9,small"]))
    assert prepare(cells, *words) == 2
    message = capsys.readouterr().err
    assert "neuron1 9 has two values, large and small" in message
    assert "has no size for objects 4" in message
    assert prepare(cells, *words, "--skip-bad") == 0
    dataset = CocoDataset.load(cells / "out" / "all.json")
    assert dataset.num_objects == 15


def test_a_map_of_label_numbers(cells: Path) -> None:
    (cells / "map.yaml").write_text("4: nucleus\n7: nucleus\n9: debris\n300: ~\n")
    assert prepare(cells, "--classes-from", f"map:{cells / 'map.yaml'}") == 0
    labels = labels_of(0)
    expected = expected_masks(np.where(labels == 300, 0, labels), {4: "nucleus", 7: "nucleus", 9: "debris"})
    assert masks_by_class(CocoDataset.load(cells / "out" / "all.json"), 0) == expected


def test_categories_of_a_coco_file_joined_and_left_out(cells: Path) -> None:
    (cells / "map.yaml").write_text("4: a\n7: b\n9: c\n300: c\n")
    assert prepare(cells, "--classes-from", f"map:{cells / 'map.yaml'}") == 0
    (cells / "other.yaml").write_text("c: big\na: big\nb: null\n")
    words = ("--annotations", cells / "out" / "all.json", "--split", "1")
    assert run("prepare coco", cells / "coco", *words, "--classes-from", f"map:{cells / 'other.yaml'}") == 0
    dataset = CocoDataset.load(cells / "coco" / "all.json")
    assert dataset.class_names == ["big"]
    labels = labels_of(0)
    assert masks_by_class(dataset, 0) == expected_masks(np.where(labels == 7, 0, labels), "big")


def test_images_in_no_folder_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    Image.fromarray(labels_of()).save(tmp_path / "labels" / "a.png")
    assert prepare(tmp_path, "--classes-from", "folder") == 2
    assert "a.png: is not in a folder that could be its class" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["kind"], "expected folder, column:NAME"),
        (["folder", "folder"], "expected folder"),
        (["folder:x"], "expected folder"),
        (["column:"], "expected folder"),
        (["csv:only"], "expected csv:FILE:COLUMN"),
        (["folder", "csv:a:b"], "expected folder"),
        (["map:"], "expected folder"),
    ],
)
def test_words_that_say_nothing_are_refused(words: list[str], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        parse_class_rule(words)


def test_paths_with_a_drive_are_read() -> None:
    rule = parse_class_rule(["csv:C:/my data/kinds.csv:cell type"])
    assert rule is not None
    assert (str(rule.table), rule.column) == (str(Path("C:/my data/kinds.csv")), "cell type")
    assert parse_class_rule([]) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", ""),
        ("a.yaml", "- a\n- b\n"),
        ("a.yaml", "a: [1]\n"),
        ("a.yaml", "a: b: c"),
        ("a.yaml", "a: null\n"),
        ("a.json", "{"),
        ("a.csv", "name\nx\n"),
        ("a.csv", "name,class\nx,a\nx,b\n"),
        ("a.csv", "name,class\nx,a,c\n"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        read_class_map(tmp_path / name)
    with pytest.raises(DataError, match="no such map"):
        read_class_map(tmp_path / "absent.yaml")


def test_a_field_that_is_not_there_is_refused(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(cells, "--classes-from", "column:kind") == 2
    assert "there is no such image field; there are none" in capsys.readouterr().err
