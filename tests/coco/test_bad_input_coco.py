"""Bad COCO files through the command line: one message with the place and the remedy, status 2, and a way to go on."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 10, 12
TOTAL = HEIGHT * WIDTH


def example() -> dict[str, Any]:
    """Three images with two annotations each; ids count from 1."""
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    runs = {"size": [HEIGHT, WIDTH], "counts": [15, 5, TOTAL - 20]}
    return {
        "info": {"description": "ü"},
        "images": [
            {"id": number, "file_name": f"sub folder/ü {number}.png", "height": HEIGHT, "width": WIDTH, "plate": "p"}
            for number in (1, 2, 3)
        ],
        "annotations": [
            {"id": number, "image_id": (number + 1) // 2, "category_id": 1 + number % 2, "segmentation": mask}
            for number, mask in enumerate([square, runs] * 3, start=1)
        ],
        "categories": [{"id": 1, "name": "round"}, {"id": 2, "name": "long"}],
    }


def write(folder: Path, content: Any) -> Path:
    (folder / "sub folder").mkdir(exist_ok=True)
    for number in (1, 2, 3):
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(folder / "sub folder" / f"ü {number}.png")
    path = folder / "my set.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def prepare(path: Path, *options: str) -> int:
    return main(["prepare", "coco", "--annotations", str(path), "--output", str(path.parent / "out"), *options])


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"segmentation": {"size": list(size), "counts": counts}}


BAD_ANNOTATIONS = {
    "unknown image": ({"image_id": 44}, 'its image_id 44 is none of the file\'s "images"'),
    "image a list": ({"image_id": [7]}, "its image_id a list is none"),
    "unknown category": ({"category_id": 9}, 'its category_id 9 is none of the file\'s "categories"'),
    "category a list": ({"category_id": [1]}, "its category_id a list is none"),
    "no category": ({"category_id": None}, "its category_id None is none"),
    "no segmentation": ({"segmentation": None}, "has no mask"),
    "empty segmentation": ({"segmentation": []}, "has no mask"),
    "a text": ({"segmentation": "square"}, "expected polygons"),
    "polygon of two points": ({"segmentation": [[1, 2, 3, 4]]}, "has no mask (no polygon of three points or more)"),
    "flat polygon": ({"segmentation": [1, 2, 3, 4, 5, 6]}, "its polygon is a flat list"),
    "polygon with NaN": ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "not finite"),
    "polygon with text": ({"segmentation": [[1, 2, 3, 4, 5, "6"]]}, "not a number"),
    "polygon of odd length": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "expected pairs x, y"),
    "RLE without a size": ({"segmentation": {"counts": [1, 2]}}, "its RLE is incomplete"),
    "RLE of another size": (rle([TOTAL], (WIDTH, HEIGHT)), "its RLE has the size [12, 10] (height, width)"),
    "RLE of too few pixels": (rle([5, 5]), "add up to 10 pixels, but its size is 10 x 12 = 120"),
    "RLE with a negative run": (rle([50, -5, TOTAL - 45]), "run lengths from 0 to the number of pixels"),
    "RLE with no numbers": (rle(["a", 5]), "run lengths as a list of whole numbers"),
    "RLE with fractions": (rle([0.5, 119.5]), "run lengths as a list of whole numbers"),
    "RLE text cut off": (rle("o"), "truncated in the middle of a number"),
    "RLE text of too many": (rle("0" * 99 + "P" * 9), "annotation 4"),
    "RLE text of no RLE": (rle("é!"), "invalid characters"),
    "empty mask": (rle([TOTAL]), "has no mask (its RLE has no pixel)"),
}


@pytest.mark.parametrize("case", BAD_ANNOTATIONS)
def test_a_bad_annotation_is_named_and_left_out_on_demand(tmp_path: Path, case: str) -> None:
    change, text = BAD_ANNOTATIONS[case]
    content = example()
    content["annotations"][3].update(change)
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        CocoDataset.load(path)
    for part in (f"{path}: 1 problem;", "annotation 4", text, "prepare coco --skip-bad"):
        assert part in str(caught.value)
    skipped: list[str] = []
    dataset = CocoDataset.load(path, skipped=skipped)
    assert dataset.objects_per_image().sum(axis=1).tolist() == [2, 1, 2]
    assert len(skipped) == 1
    assert text in skipped[0]


def test_commands_end_at_a_bad_annotation_or_leave_it_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = example()
    content["annotations"][3]["category_id"] = 9
    path = write(tmp_path, content)
    assert main(["train_net", *train_words(path)]) == 2
    assert f"{path}: 1 problem;" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.pth"))
    assert prepare(path) == 2
    assert "annotation 4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert prepare(path, "--split", "1", "--skip-bad") == 0
    assert CocoDataset.load(tmp_path / "out" / "all.json").objects_per_image().sum(axis=1).tolist() == [2, 1, 2]
    assert "annotation 4" in (tmp_path / "out" / "skipped.txt").read_text(encoding="utf-8")


def train_words(path: Path) -> list[str]:
    return [
        *("--config", str(Path(__file__).parents[2] / "configs" / "quickstart" / "mask_rcnn.yaml")),
        *("DATASETS.TRAIN", f"['{path.as_posix()}']", "DATASETS.TEST", "[]", "TEST.EVAL_PERIOD", "0"),
        *("OUTPUT_DIR", str(path.parent / "run"), "MODEL.ROI_HEADS.NUM_CLASSES", "2"),
    ]


BAD_IMAGES = {
    "leads out": ({"file_name": "../secret.png"}, "leads out of the image root", 1),
    "leads out further inside": ({"file_name": "a/../../secret.png"}, "leads out of the image root", 1),
    "absolute": ({"file_name": "/etc/passwd"}, "leads out of the image root", 1),
    "a drive": ({"file_name": "C:\\secret.png"}, "leads out of the image root", 1),
    "no name": ({"file_name": None}, "expected a path relative to the image root", 1),
    "half a character": ({"file_name": "\ud83d.png"}, "expected a path relative to the image root", 1),
    "no height": ({"height": None}, "expected height and width in pixels, found None and 12", 1),
    "claimed size": ({"height": 60_000, "width": 60_000}, "claims 60000 x 60000 pixels", 1),
    "id twice": ({"id": 1}, "the id 1 occurs twice (number 0 has it too)", 2),
    "name twice": ({"file_name": "sub folder/ü 1.png"}, "the file_name 'sub folder/ü 1.png' occurs twice", 2),
    "id a list": ({"id": [2]}, "its id is a list; expected a whole number or a string", 1),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_is_named_and_left_out_with_its_annotations_on_demand(tmp_path: Path, case: str) -> None:
    change, text, lost = BAD_IMAGES[case]
    content = example()
    content["images"][1].update(change)
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=r"number 1[):]") as caught:
        CocoDataset.load(path)
    assert text in str(caught.value)
    dataset = CocoDataset.load(path, skipped=[])
    assert dataset.objects_per_image().sum(axis=1).tolist() == [2] * (3 - lost)


NO_COCO = {
    "empty": ("", "is truncated or not JSON"),
    "cut off": (json.dumps(example())[:-200], "is truncated or not JSON"),
    "no COCO": ('{"a": 1}', 'expected a list "images", found nothing'),
    "a list": ("[1, 2]", "is truncated or not JSON"),
    "labelme": ('{"version": "5.0", "shapes": [], "imagePath": "a.png"}', 'expected a list "images"'),
    "no annotations": ('{"images": [], "categories": []}', "for none, write an empty list"),
    "a number of 5000 digits": ('{"images": ' + "1" * 5000 + "}", "is truncated or not JSON"),
    "image root a list": (json.dumps({**example(), "info": {"image_root": [1]}}), "info.image_root is a list"),
    "category twice": (
        json.dumps({**example(), "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}),
        "the category id 1 occurs twice",
    ),
    "no image": (json.dumps({**example(), "images": [], "annotations": []}), "has no usable images"),
}


@pytest.mark.parametrize("case", NO_COCO)
def test_what_is_no_coco_file_is_refused_with_and_without_skipping(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    content, text = NO_COCO[case]
    path = write(tmp_path, content)
    for options in ([], ["--skip-bad"]):
        assert prepare(path, *options) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {path}: ")
        assert text in message
    assert not (tmp_path / "out").exists()


def test_ids_of_annotations_that_occur_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = example()
    content["annotations"][5]["id"] = 1
    path = write(tmp_path, content)
    assert main(["train_net", *train_words(path)]) == 2
    assert "annotation 1: the id occurs 2 times" in capsys.readouterr().err
    assert prepare(path, "--split", "1") == 0, "written anew, they are harmless"
    assert CocoDataset.load(tmp_path / "out" / "all.json").num_objects == 6


def test_bad_image_files_behind_a_good_coco_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, example())
    (tmp_path / "sub folder" / "ü 1.png").write_bytes(b"")
    (tmp_path / "sub folder" / "ü 2.png").unlink()
    Image.fromarray(np.zeros((WIDTH, HEIGHT), np.uint8)).save(tmp_path / "sub folder" / "ü 3.png")
    assert prepare(path) == 2
    message = capsys.readouterr().err
    for part in ("3 problems", "ü 1.png: the file is empty", "ü 2.png: there is no such file", "says 10 x 12"):
        assert part in message
    assert prepare(path, "--skip-bad") == 2
    assert "no images are left" in capsys.readouterr().err


def test_fields_that_are_numbers_stratify_too(tmp_path: Path) -> None:
    content = example()
    for image in content["images"]:
        image["plate"] = 7
    assert prepare(write(tmp_path, content), "--split", "1", "--stratify-by", "plate") == 0
    assert {r.metadata["group"] for r in CocoDataset.load(tmp_path / "out" / "all.json").images} == {"7"}


def test_splitting_keeps_masks_crowds_classes_and_fields(tmp_path: Path) -> None:
    content = example()
    content["annotations"][1]["iscrowd"] = 1
    content["categories"] = [{"id": 2, "name": "long"}, {"id": 1, "name": "round"}]
    path = write(tmp_path, content)
    assert prepare(path, "--split", "1", "--stratify-by", "plate") == 0
    before, after = CocoDataset.load(path), CocoDataset.load(tmp_path / "out" / "all.json")
    assert after.class_names == before.class_names == ["round", "long"]
    for index, (old, new) in enumerate(zip(before.images, after.images, strict=True)):
        assert new.path.resolve() == old.path.resolve()
        assert new.metadata == {**old.metadata, "group": "p"}
        old_rles, *old_rest = before.annotations(index)
        new_rles, *new_rest = after.annotations(index)
        for one, other in zip(old_rles, new_rles, strict=True):
            np.testing.assert_array_equal(rle_codec.decode(one), rle_codec.decode(other))
        np.testing.assert_array_equal(old_rest, new_rest)


def test_no_traceback_and_the_right_status_in_a_process_of_its_own(tmp_path: Path) -> None:
    content = copy.deepcopy(example())
    content["annotations"][0]["category_id"] = 77
    path = write(tmp_path, content)
    words = ["prepare", "coco", "--annotations", str(path), "--output", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-m", "detseg", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "annotation 1: its category_id 77" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "detseg", *words, "--debug"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_skip_bad_makes_no_background_of_bad_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = example()
    for annotation in content["annotations"][:2]:  # those of the first image
        annotation["segmentation"] = []
    content["annotations"][2]["segmentation"] = []
    path = write(tmp_path, content)
    assert prepare(path, "--split", "1", "--skip-bad") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert [record.file_name[-5:] for record in dataset.images] == ["2.png", "3.png"]
    assert dataset.objects_per_image().sum(axis=1).tolist() == [1, 2]
    listed = (tmp_path / "out" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 4
    assert listed[-1].endswith("1.png: all of its annotations are bad, so it is left out")


@pytest.mark.parametrize("value", [0, 1, True, False, "0", "1", "true", "False", 1.0])
def test_legal_iscrowd(tmp_path: Path, value: Any) -> None:
    content = example()
    content["annotations"][0]["iscrowd"] = value
    dataset = CocoDataset.load(write(tmp_path, content))
    assert dataset.table.crowd[0] == (str(value).lower() in ("1", "true", "1.0"))
    assert dataset.num_objects == 6 - dataset.table.crowd[0]
    assert next(dataset.raw_annotations())["iscrowd"] in (0, 1)


@pytest.mark.parametrize("value", [2, -1, None, float("nan"), "yes", "", [], 0.5])
def test_any_other_iscrowd_is_refused(tmp_path: Path, value: Any) -> None:
    content = example()
    content["annotations"][0]["iscrowd"] = value
    with pytest.raises(DataError, match=r"annotation 1.*iscrowd is .*; expected 0 or 1"):
        CocoDataset.load(write(tmp_path, content))
