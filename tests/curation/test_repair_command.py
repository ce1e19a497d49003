"""`detseg repair` and `--repair` on files: nothing is lost, a second time changes nothing."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.structures import rle as rle_codec

SIZE = 30


def square(x0: int, y0: int, side: int, hole: bool = False) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    if hole:
        mask[y0 + 2, x0 + 2] = False
    return mask


def text_rle(mask: np.ndarray) -> dict:
    rle = rle_codec.encode_mask(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


@pytest.fixture
def damaged(tmp_path: Path) -> dict:
    """A COCO file with one of each damage and fields that detseg does not know."""
    Image.fromarray(np.zeros((SIZE, SIZE), dtype=np.uint8)).save(tmp_path / "a.png")
    polygon = {"id": 7, "segmentation": [[1.5, 1, 9, 1, 9, 9, 1, 9]], "score": 0.5}
    two = square(0, 20, 4) | square(20, 20, 4)
    rows = [
        {
            "id": 3,
            "image_id": "one",
            "category_id": 5,
            "segmentation": text_rle(square(12, 2, 6, hole=True)),
            "who": "x",
        },
        {**polygon, "image_id": "one", "category_id": 5},
        {"id": 9, "image_id": "one", "category_id": 5, "segmentation": text_rle(two), "who": "y", "area": 1},
        {"id": 10, "image_id": "one", "category_id": 5, "segmentation": text_rle(np.zeros((SIZE, SIZE), bool))},
        {"id": 11, "image_id": "one", "category_id": 5, "segmentation": []},
        {"id": 12, "image_id": "one", "category_id": 2, "segmentation": text_rle(square(12, 2, 6)), "note": "n"},
        {"id": 13, "image_id": "one", "category_id": 5, "segmentation": text_rle(square(20, 10, 3)), "iscrowd": 1},
    ]
    coco = {
        "info": {"year": 2018},
        "licenses": [{"id": 1}],
        "images": [
            {"id": "one", "file_name": "a.png", "height": SIZE, "width": SIZE, "group": "cell", "x": 1},
            {"id": "two", "file_name": "b.png", "height": 5, "width": 5},
        ],
        "categories": [{"id": 5, "name": "cell", "supercategory": "thing"}, {"id": 2, "name": "dirt"}],
        "annotations": rows,
        "mine": {"deep": [1]},
    }
    (tmp_path / "in.json").write_text(json.dumps(coco), encoding="utf-8")
    return coco


def test_what_is_not_repaired_is_written_as_it_was(damaged: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["repair", str(tmp_path / "in.json"), str(tmp_path / "new" / "out.json"), "--rules", "min_area=3"]
    assert main([*words, "--pictures", str(tmp_path / "new" / "p.png")]) == 0
    printed = capsys.readouterr().out
    assert "masks with holes" in printed
    out = json.loads((tmp_path / "new" / "out.json").read_text(encoding="utf-8"))
    assert out["images"] == damaged["images"]
    assert out["categories"] == damaged["categories"]
    assert (out["licenses"], out["mine"]) == (damaged["licenses"], damaged["mine"])
    assert (out["info"]["year"], out["info"]["image_root"]) == (2018, "..")
    assert out["info"]["repair"]["min_area"] == 3
    by_id = {row["id"]: row for row in out["annotations"]}
    assert set(by_id) == {3, 7, 9, 13, 14}
    assert by_id[7] == damaged["annotations"][1], "a polygon that nothing is wrong with stays a polygon"
    assert by_id[13] == damaged["annotations"][6]
    assert (by_id[3]["area"], by_id[3]["bbox"], by_id[3]["who"]) == (36, [12, 2, 6, 6], "x")
    assert by_id[3]["note"] == "n", "the fields of what was merged into it"
    assert (by_id[9]["area"], by_id[14]["area"], by_id[14]["who"]) == (16, 16, "y")
    assert Image.open(tmp_path / "new" / "p.png").width > 500

    with open(tmp_path / "new" / "out_repairs.csv", encoding="utf-8", newline="") as file:
        lines = [
            (row["annotation"], row["rule"], row["pixels_added"], row["pixels_removed"]) for row in csv.DictReader(file)
        ]
    assert sorted(lines) == [
        ("10", "empty", "0", "0"),
        ("11", "empty", "0", "0"),
        ("12", "duplicates", "0", "36"),
        ("3", "holes", "1", "0"),
        ("9", "fragments", "0", "16"),
    ]
    assert len(CocoDataset.load(tmp_path / "new" / "out.json").annotations(0).rles) == 5

    again = [str(tmp_path / "new" / name) for name in ("out.json", "again.json.gz")]
    assert main(["repair", *again, "--rules", "min_area=3"]) == 0
    assert "nothing to repair was found" in capsys.readouterr().out
    with gzip.open(again[1], "rt") as file:
        second = json.load(file)
    assert second["annotations"] == out["annotations"]
    assert second["info"] == {**out["info"]}, "beside each other: the same image root"


def test_kinds_by_field(damaged: dict, tmp_path: Path):
    words = ["repair", str(tmp_path / "in.json"), str(tmp_path / "out.json"), "--rules", "kind_field=group"]
    assert main([*words, "duplicates=off", "min_area=off"]) == 0
    assert {row["category_id"] for row in json.loads((tmp_path / "out.json").read_text())["annotations"]} == {5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["in.json", "in.json"], "give another output"),
        (["none.json", "out.json"], "there is no such file"),
        (["in.json", "out.json", "--rules", "holse=all"], "did you mean holes?"),
        (["in.json", "there.json"], "pass --overwrite"),
    ],
)
def test_what_cannot_be_repaired_is_refused(
    damaged: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch, words: list[str], said: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("{}", encoding="utf-8")
    assert main(["repair", *words]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "there.json").read_text() == "{}"


def test_other_faults_are_told_or_left_out(damaged: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    damaged["annotations"][0]["image_id"] = "gone"
    (tmp_path / "in.json").write_text(json.dumps(damaged), encoding="utf-8")
    words = ["repair", str(tmp_path / "in.json"), str(tmp_path / "out.json")]
    assert main(words) == 2
    assert "annotation 3" in capsys.readouterr().err
    assert main([*words, "--skip-bad"]) == 0
    assert "annotation 3" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == 2


def test_prepare_repairs_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = square(2, 2, 8, hole=True).astype(np.uint8) + 2 * square(15, 15, 2).astype(np.uint8)
    np.save(tmp_path / "labels" / "a.npy", labels)
    np.save(tmp_path / "images" / "a.npy", np.zeros((SIZE, SIZE), dtype=np.uint8))
    words = ["prepare", "label_images", "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels")]
    words += ["--output", str(tmp_path / "out"), "--split", "1"]
    assert main([*words, "--repair"]) == 0
    assert "objects that are too small" in capsys.readouterr().out
    coco = json.loads((tmp_path / "out" / "all.json").read_text(encoding="utf-8"))
    assert [annotation["area"] for annotation in coco["annotations"]] == [64]
    assert (tmp_path / "out" / "repairs.csv").read_text().count("\n") == 3
    assert main([*words, "--repair", "none", "min_area=5"]) == 2, "nothing is replaced without --overwrite"
    assert main([*words, "--repair", "none", "min_area=5", "--overwrite"]) == 0
    coco = json.loads((tmp_path / "out" / "all.json").read_text(encoding="utf-8"))
    assert [annotation["area"] for annotation in coco["annotations"]] == [63]


def test_crowd_regions_keep_their_place_in_prepare(damaged: dict, tmp_path: Path):
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    damaged["images"][1].update(height=SIZE, width=SIZE)
    damaged["annotations"] = [row for row in damaged["annotations"] if row["id"] not in (10, 11)]
    (tmp_path / "in.json").write_text(json.dumps(damaged), encoding="utf-8")
    words = [
        "prepare",
        "coco",
        "--annotations",
        str(tmp_path / "in.json"),
        "--output",
        str(tmp_path / "out"),
        "--split",
        "1",
    ]
    assert main([*words, "--repair"]) == 0
    rows = json.loads((tmp_path / "out" / "all.json").read_text(encoding="utf-8"))["annotations"]
    assert [(row["area"], row["iscrowd"]) for row in rows] == [(36, 0), (63, 0), (16, 0), (16, 0), (9, 1)]


def test_a_kind_that_no_image_has_is_refused(damaged: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["repair", str(tmp_path / "in.json"), str(tmp_path / "out.json"), "--rules"]
    assert main([*words, "kind_field=knd"]) == 2
    assert "no image has a field 'knd'" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
    assert main([*words, "kind_field=group"]) == 0
