"""LIVECell: official parts, folders by cell type or flat, single cell types, both layouts of its annotations."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pycocotools import mask as coco_mask
from readers_for_tests import HEIGHT, WIDTH, run

from detseg.coco.dataset import CocoDataset
from detseg.structures import rle as rle_codec

KINDS = ("A172", "SHSY5Y")
COUNTS = {"train": 4, "val": 2, "test": 2}
SQUARE = [[3.0, 2.0, 12.5, 2.0, 12.5, 9.5, 3.0, 9.5]]
TWO_PARTS = [[20.0, 20.0, 26.0, 20.0, 26.0, 26.0], [30.0, 20.0, 36.0, 20.0, 36.0, 26.0]]


def coco_of(names: list[str], first_id: int, *, as_object: bool) -> dict[str, Any]:
    annotations = [
        {
            "id": first_id + 2 * n + m,
            "image_id": first_id + n,
            "category_id": 1,
            "segmentation": segmentation,
            "area": 1.0,
            "bbox": [0, 0, 1, 1],
            "iscrowd": 0,
        }
        for n in range(len(names))
        for m, segmentation in enumerate((SQUARE, TWO_PARTS))
    ]
    images = [
        {"id": first_id + n, "file_name": name, "height": HEIGHT, "width": WIDTH, "url": "http://x/y"}
        for n, name in enumerate(names)
    ]
    return {
        "images": images,
        "annotations": {str(row["id"]): row for row in annotations} if as_object else annotations,
        "categories": [{"supercategory": "cell", "id": 1, "name": "cell"}],
        "info": {},
        "licenses": [],
    }


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Two cell types: the files of all, those of one type (annotations as an object), the images in their folders."""
    root = tmp_path / "livecell"
    names: dict[tuple[str, str], list[str]] = {}
    for part, count in COUNTS.items():
        folder = "livecell_test_images" if part == "test" else "livecell_train_val_images"
        for kind in KINDS:
            for index in range(count // 2):
                name = f"{kind}_Phase_C{len(part)}_1_0{index}d00h00m_2.tif"
                path = root / "images" / folder / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, np.full((HEIGHT, WIDTH), index, np.uint8))
                names.setdefault((part, kind), []).append(name)
    (root / "LIVECell").mkdir()
    for part in COUNTS:
        both = [name for kind in KINDS for name in names[part, kind]]
        content = coco_of(both, {"train": 1, "val": 100, "test": 1}[part], as_object=False)
        (root / "LIVECell" / f"livecell_coco_{part}.json").write_text(json.dumps(content))
        for kind in KINDS:
            folder = root / "LIVECell_single_cells" / kind.lower()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{part}.json").write_text(json.dumps(coco_of(names[part, kind], 1, as_object=True)))
    few = coco_of(names["train", "A172"][:1], 1, as_object=False)
    (root / "0_train2percent.json").write_text(json.dumps(few))
    return root


def assert_masks(dataset: CocoDataset) -> None:
    """Masks are those that pycocotools fills."""
    for index in range(len(dataset)):
        found = [rle_codec.decode(rle) for rle in dataset.annotations(index).rles]
        for mask, polygons in zip(found, (SQUARE, TWO_PARTS), strict=True):
            expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)))
            np.testing.assert_array_equal(mask, expected.astype(bool))


def test_official_parts_with_the_cell_type_as_group(published: Path, tmp_path: Path) -> None:
    assert run("prepare livecell", tmp_path / "out", "--source", published) == 0
    for part, count in COUNTS.items():
        dataset = CocoDataset.load(tmp_path / "out" / f"{part}.json")
        assert len(dataset) == count
        assert dataset.class_names == ["cell"]
        dataset.check_images_exist()
        assert_masks(dataset)
        fields = dataset.images[0].metadata
        assert fields["group"] == fields["cell_type"] == "A172"
        assert fields["well"] == f"A172_C{len(part)}"
        assert fields["field"].endswith("_1_00d00h00m")
        assert fields["time"] == "00d00h00m"
    assert not (tmp_path / "out" / "unlabelled.json").exists()


def test_one_cell_type_and_a_part_of_the_training_images(published: Path, tmp_path: Path) -> None:
    assert run("prepare livecell", tmp_path / "one", "--source", published, "--cell-type", "shsy5y") == 0
    for part, count in COUNTS.items():
        dataset = CocoDataset.load(tmp_path / "one" / f"{part}.json")
        assert len(dataset) == count // 2
        assert {record.metadata["cell_type"] for record in dataset.images} == {"SHSY5Y"}
        assert_masks(dataset)
    assert run("prepare livecell", tmp_path / "few", "--source", published, "--percent", "2") == 0
    assert len(CocoDataset.load(tmp_path / "few" / "train.json")) == 1
    assert len(CocoDataset.load(tmp_path / "few" / "test.json")) == 2


def test_cell_types_as_classes_and_another_split(published: Path, tmp_path: Path) -> None:
    for number, words in enumerate((["folder"], ["column:cell_type"])):
        output = tmp_path / f"out{number}"
        assert (
            run("prepare livecell", output, "--source", published, "--classes-from", *words, "--split", "0.5", "0.5")
            == 0
        )
        dataset = CocoDataset.load(output / "train.json")
        assert dataset.class_names == ["A172", "SHSY5Y"]
        assert len(dataset) == 4
        for index, record in enumerate(dataset.images):
            assert {dataset.class_names[c] for c in dataset.annotations(index).classes} == {record.metadata["group"]}


def test_images_in_an_archive_flat_and_names_of_the_competitions_copy(published: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(published / "images.zip", "w") as archive:
        for path in sorted((published / "images").rglob("*.tif")):
            folder = path.relative_to(published).parts[1]
            archive.write(path, f"images/{folder}/{path.name}")
            path.unlink()
    single = published / "LIVECell_single_cells" / "a172"
    for part in COUNTS:
        (single / f"{part}.json").rename(single / f"livecell_a172_{part}.json")
    words = ("--source", published, "--images", published / "images.zip", "--cell-type", "A172")
    assert run("prepare livecell", tmp_path / "out", *words) == 0
    dataset = CocoDataset.load(tmp_path / "out" / "train.json")
    dataset.check_images_exist()
    assert (tmp_path / "out" / "images" / dataset.images[0].file_name).is_file()
    assert {record.metadata["group"] for record in dataset.images} == {"A172"}


def test_missing_images_annotations_and_leaks_are_told(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run("prepare livecell", tmp_path / "out", "--source", published, "--cell-type", "HeLa") == 2
    assert "no COCO files of HeLa" in capsys.readouterr().err
    lost = sorted((published / "images").rglob("*.tif"))[0]
    lost.unlink()
    val = published / "LIVECell" / "livecell_coco_val.json"
    content = json.loads(val.read_text())
    train = json.loads((published / "LIVECell" / "livecell_coco_train.json").read_text())
    content["images"][0]["file_name"] = train["images"][0]["file_name"]
    content["annotations"][0]["segmentation"] = [[1, 2]]
    val.write_text(json.dumps(content))
    assert run("prepare livecell", tmp_path / "out", "--source", published) == 2
    message = capsys.readouterr().err
    assert "1 of its images are not in" in message
    assert lost.name in message
    assert "is also in another of the COCO files" in message
    assert "annotation 100 (image A172_Phase" in message
    val.unlink()
    assert run("prepare livecell", tmp_path / "out", "--source", published, "--skip-bad") == 0
    assert "no COCO file for val" in caplog.text
    assert sum(len(CocoDataset.load(tmp_path / "out" / f"{part}.json")) for part in ("train", "test")) == 5
