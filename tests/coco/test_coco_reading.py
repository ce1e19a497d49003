"""COCO files: what pycocotools sees in them is what we see; broken ones are refused with all problems together."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.errors import DataError
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 40, 60


def square(x0: int, y0: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def example() -> dict[str, Any]:
    """Two images (one in a subfolder, ids with gaps), every form of mask, a crowd, one image without objects."""
    return {
        "info": {"year": 2026},
        "licenses": [],
        "images": [
            {"id": 70, "file_name": "a/one.png", "height": HEIGHT, "width": WIDTH, "group": "dense"},
            {"id": 7, "file_name": "two.png", "height": HEIGHT, "width": WIDTH},
            {"id": "x9", "file_name": "three.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 30, "segmentation": [[2, 3, 22.5, 3, 22.5, 19, 2, 19]]},
            {"id": 900, "image_id": 70, "category_id": 4, "segmentation": compressed(square(5, 5, 9)), "iscrowd": 0},
            {"id": 2, "image_id": 70, "category_id": 30, "segmentation": uncompressed(square(0, 0, 4)), "area": 16},
            {"id": 3, "image_id": 70, "category_id": 4, "segmentation": uncompressed(square(50, 30, 8)), "iscrowd": 1},
            {
                "id": 4,
                "image_id": 7,
                "category_id": 4,
                "segmentation": [[30, 5, 40, 5, 35, 15], [45, 20, 58, 20, 58, 39, 45, 39], [1, 1, 2, 2]],
            },
        ],
        "categories": [{"id": 30, "name": "round"}, {"id": 4, "name": "long", "supercategory": "cell"}],
    }


def write(tmp_path: Path, content: dict[str, Any], name: str = "set.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_every_form_of_mask_is_read_as_pycocotools_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path, example())
    dataset, coco = CocoDataset.load(path), None
    content = example()
    content["annotations"][4]["segmentation"].pop()  # pycocotools takes a part of two points for a box
    for annotation in content["annotations"]:
        annotation.setdefault("area", 1)
        annotation.setdefault("iscrowd", 0)
    coco = COCO(str(write(tmp_path, content, "full.json")))
    assert [category.name for category in dataset.categories] == ["long", "round"], "classes follow the ids"
    for index, record in enumerate(dataset.images):
        rles, classes, crowd = dataset.annotations(index)
        expected = coco.loadAnns(coco.getAnnIds(imgIds=[record.image_id]))
        assert len(rles) == len(expected)
        for rle, class_index, is_crowd, annotation in zip(rles, classes, crowd, expected, strict=True):
            np.testing.assert_array_equal(rle_codec.decode(rle), coco.annToMask(annotation).astype(bool))
            assert dataset.categories[class_index].id == annotation["category_id"]
            assert is_crowd == bool(annotation["iscrowd"])


def test_images_fields_subfolders_and_counts(tmp_path: Path) -> None:
    dataset = CocoDataset.load(write(tmp_path, example()))
    assert [record.image_id for record in dataset.images] == [70, 7, "x9"]
    assert dataset.images[0].path == tmp_path / "a" / "one.png"
    assert dataset.images[0].metadata == {"group": "dense"}
    assert dataset.num_objects == 4
    assert dataset.objects_per_image().tolist() == [[1, 1], [1, 1], [0, 0]]
    assert len(dataset.annotations(2).rles) == 0


def test_crowds_become_the_ignored_region(tmp_path: Path) -> None:
    dataset = CocoDataset.load(write(tmp_path, example()))
    for record in dataset.images:
        record.path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(record.path)
    sample = dataset.read_sample(0)
    np.testing.assert_array_equal(sample.ignore, square(50, 30, 8))
    np.testing.assert_array_equal(sample.layers.masks(), [square(5, 5, 9), square(0, 0, 4)])
    assert sample.classes.tolist() == [0, 1]
    assert dataset.read_sample(1).ignore is None
    assert len(dataset.read_sample(2).layers) == 0


def test_image_root_is_the_given_one_then_that_of_the_file_then_its_folder(tmp_path: Path) -> None:
    content = example()
    assert CocoDataset.load(write(tmp_path, content)).images[1].path == tmp_path / "two.png"
    content["info"]["image_root"] = "pictures"
    assert CocoDataset.load(write(tmp_path, content)).images[1].path == tmp_path / "pictures" / "two.png"
    content["info"]["image_root"] = str(tmp_path / "far")
    assert CocoDataset.load(write(tmp_path, content)).images[1].path == tmp_path / "far" / "two.png"
    assert CocoDataset.load(tmp_path / "set.json", "given").images[1].path == Path("given") / "two.png"


def test_gzip_indented_and_not_ascii_files_are_the_same_data(tmp_path: Path) -> None:
    content = example()
    content["categories"][0]["name"] = "rond · ぴ"
    expected = CocoDataset.load(write(tmp_path, content))
    (tmp_path / "indented.json").write_text(json.dumps(content, indent=3, ensure_ascii=False), encoding="utf-8-sig")
    (tmp_path / "packed.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    for name in ("indented.json", "packed.json.gz"):
        dataset = CocoDataset.load(tmp_path / name)
        assert dataset.class_names == ["long", "rond · ぴ"]
        for index in range(3):
            assert dataset.annotations(index).rles == expected.annotations(index).rles


def test_select_concatenate_reorder_and_pickle_keep_masks_with_their_images(tmp_path: Path) -> None:
    dataset = CocoDataset.load(write(tmp_path, example()))
    both = CocoDataset.concatenate([dataset, dataset.select([2, 0]).with_classes(["round", "long"])])
    both = pickle.loads(pickle.dumps(both))
    assert [record.image_id for record in both.images] == [70, 7, "x9", "x9", 70]
    for index, origin in ((0, 0), (1, 1), (2, 2), (3, 2), (4, 0)):
        for mine, expected in zip(both.annotations(index), dataset.annotations(origin), strict=True):
            np.testing.assert_array_equal(mine, expected)
    assert dataset.with_classes(["round", "long"]).annotations(0).classes.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"long, round; expected round, square"):
        dataset.with_classes(["round", "square"])


def test_a_polygon_between_pixel_centres_is_left_out(tmp_path: Path) -> None:
    content = example()
    content["annotations"][0]["segmentation"] = [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]]
    dataset = CocoDataset.load(write(tmp_path, content))
    rles, classes, crowd = dataset.annotations(1)
    assert (len(rles), len(classes), len(crowd)) == (1, 1, 1)
    assert dataset.categories[classes[0]].name == "long"


def test_polygons_far_outside_are_cut_off_at_the_border(tmp_path: Path) -> None:
    content = example()
    content["annotations"][0]["segmentation"] = [[-1e30, -1e30, 1e30, -1e30, 1e30, 1e30, -1e30, 1e30]]
    dataset = CocoDataset.load(write(tmp_path, content))
    assert rle_codec.decode(dataset.annotations(1).rles[0]).all()


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    content = example()
    content["annotations"][0].pop("segmentation")
    content["annotations"][1]["category_id"] = 99
    content["annotations"][2]["segmentation"]["counts"] = [3]
    content["images"][1]["file_name"] = "../two.png"
    content["images"][2]["height"] = 0
    with pytest.raises(DataError) as caught:
        CocoDataset.load(write(tmp_path, content))
    for part in ("5 problems", "annotation 5", "annotation 900", "annotation 2", "two.png", "three.png"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "a/../../b.png",
        "/etc/passwd",
        "C:/a.png",
        "C:\\a.png",
        "..\\a.png",
        "\\\\host\\a.png",
        "",
        ".",
        None,
        5,
    ],
)
def test_file_names_that_lead_out_of_the_image_root_are_refused(tmp_path: Path, name: Any) -> None:
    content = example()
    content["images"][0]["file_name"] = name
    with pytest.raises(DataError, match="file_name"):
        CocoDataset.load(write(tmp_path, content))


@pytest.mark.parametrize("name", ["a/../b.png", "./b.png", "..b.png", "a b/ü.png"])
def test_file_names_below_the_image_root_are_accepted(tmp_path: Path, name: str) -> None:
    content = example()
    content["images"][0]["file_name"] = name
    assert CocoDataset.load(write(tmp_path, content)).images[0].file_name == name


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "5", "{}", "\0", '{"images": []}', "{" * 100_000, '{"annotations": [1,]}'),
        *('{"images": [], "categories": [], "annotations": {}}', '{"annotations": [1 2]}'),
        *(
            '{"images": {}, "annotations": [], "categories": []}',
            '{"annotations": [], "images": [], "categories": []} x',
        ),
    ],
)
def test_what_is_no_coco_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "strange.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"strange\.json"):
        CocoDataset.load(path)
    path.write_bytes(gzip.compress(text.encode())[:-4])
    with pytest.raises(DataError, match=r"strange\.json"):
        CocoDataset.load(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    text = json.dumps(example())
    for length in range(0, len(text), 37):
        (tmp_path / "cut.json").write_text(text[:length], encoding="utf-8")
        with pytest.raises(DataError, match=r"cut\.json"):
            CocoDataset.load(tmp_path / "cut.json")


def test_missing_json_duplicate_ids_and_wrong_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        CocoDataset.load(tmp_path / "absent.json")
    content = example()
    content["images"].append(dict(content["images"][0]))
    content["images"].append(3)
    content["categories"].append({"id": 4, "name": "round"})
    content["annotations"].append("a")
    with pytest.raises(DataError, match=r"(?s)occurs twice.*occurs twice.*occurs twice.*annotation number 5"):
        CocoDataset.load(write(tmp_path, content))


def test_missing_images_are_told_together_and_a_wrong_size_is_refused(tmp_path: Path) -> None:
    dataset = CocoDataset.load(write(tmp_path, example()))
    with pytest.raises(DataError, match=r"(?s)3 of 3 images are missing.*DATASETS\.IMAGE_ROOT.*one\.png.*three\.png"):
        dataset.check_images_exist()
    Image.fromarray(np.zeros((WIDTH, HEIGHT), np.uint8)).save(tmp_path / "two.png")
    with pytest.raises(DataError, match=r"two\.png: the image has 60 x 40 pixels .* says 40 x 60"):
        dataset.read_sample(1)


def test_what_we_write_pycocotools_and_we_read_back(tmp_path: Path) -> None:
    masks = [square(3, 4, 10), square(8, 8, 10), square(0, 0, 1)]
    rles = [rle_codec.encode_mask(mask) for mask in masks]
    for name in ("set.json", "set.json.gz"):
        write_coco(
            tmp_path / name,
            images=[{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
            annotations=annotations_of(rles, [2, 1, 2], image_id=1, first_id=11, crowd=[False, False, True]),
            categories=[{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
            info={"image_root": "."},
        )
        dataset = CocoDataset.load(tmp_path / name)
        assert dataset.annotations(0).rles == rles
        assert dataset.annotations(0).crowd.tolist() == [False, False, True]
    coco = COCO(str(tmp_path / "set.json"))
    for annotation, mask in zip(coco.loadAnns([11, 12, 13]), masks, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()


def test_writing_does_not_overwrite_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    def fails() -> Any:
        yield {"id": 1}
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write_coco(tmp_path / "set.json", images=[], annotations=fails(), categories=[])
    assert list(tmp_path.iterdir()) == []
    write_coco(tmp_path / "set.json", images=[], annotations=[], categories=[])
    with pytest.raises(DataError, match="--overwrite"):
        write_coco(tmp_path / "set.json", images=[], annotations=[], categories=[])
    write_coco(tmp_path / "set.json", images=[], annotations=[], categories=[{"id": 1, "name": "a"}], overwrite=True)
    assert CocoDataset.load(tmp_path / "set.json").class_names == ["a"]
