"""What all readers do alike: names, lists, stacks, hidden files; what is ambiguous is asked."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from readers_for_tests import labels_of, run, write_image
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.geojson import GeoJsonOptions, read_features
from detseg.formats.imagej import read_roi_file
from detseg.images import pixel_source
from detseg.images.reading import decode_label_image, read_image
from detseg.inference.image_list import find_images


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two PNG images and an OME-TIFF, with label images; and what macOS leaves beside files."""
    for name in ("a.png", "sub/b.png"):
        write_image(tmp_path / "images" / name)
    tifffile.imwrite(tmp_path / "images" / "c.ome.tif", np.zeros((30, 40), np.uint8), photometric="minisblack")
    (tmp_path / "labels" / "sub").mkdir(parents=True)
    for name in ("a", "sub/b", "c"):
        tifffile.imwrite(tmp_path / "labels" / f"{name}.tif", labels_of())
    for folder in ("images", "labels"):
        (tmp_path / folder / "._a.png").write_bytes(b"\0\5\x16\7")
    return tmp_path / "images", tmp_path / "labels"


def test_ome_tiff_beside_plain_labels_and_lists_with_suffix(folders: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    words = ["--images", folders[0], "--labels", folders[1]]
    (tmp_path / "my_train.txt").write_text("a.png\nc.ome.tif\n")
    (tmp_path / "my_val.txt").write_text("sub/b.png\n")
    assert run("prepare label_images", tmp_path / "out", *words, "--split-lists", tmp_path / "my") == 0
    assert [r.file_name for r in CocoDataset.load(tmp_path / "out" / "train.json").images] == ["a.png", "c.ome.tif"]
    (tmp_path / "my_val.txt").write_text("b\n")
    assert run("prepare label_images", tmp_path / "out", *words, "--split-lists", tmp_path / "my", "--overwrite") == 0
    (tmp_path / "my_val.txt").write_text("a\n")
    assert run("prepare label_images", tmp_path / "out", *words, "--split-lists", tmp_path / "my", "--overwrite") == 2
    assert "a is in my_train.txt already" in capsys.readouterr().err


def test_all_problems_at_once(folders: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    (folders[1] / "a.tif").unlink()
    (folders[0] / "sub" / "b.png").write_bytes(b"no image")
    (tmp_path / "my_all.txt").write_text("a\nc\nsub/b\ngone\n")
    words = ["--images", folders[0], "--labels", folders[1], "--split-lists", tmp_path / "my"]
    assert run("prepare label_images", tmp_path / "out", *words) == 2
    said = capsys.readouterr().err
    assert "a.png: has no label image" in said
    assert "no image gone" in said
    assert "b.png: the file is not an image" in said


def test_hidden_files_are_no_images_to_predict(folders: tuple[Path, Path]) -> None:
    assert [record.file_name for record in find_images([str(folders[0])]).records] == ["a.png", "c.ome.tif"]
    assert len(find_images([str(folders[0] / "*.png")]).records) == 1


def test_stacks_of_label_images(tmp_path: Path, capsys) -> None:
    stack = np.stack([labels_of(index) for index in range(3)])
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(
            tmp_path / folder / "a.tif", stack, metadata={"axes": "ZYX"}, imagej=True, photometric="minisblack"
        )
    words = ["--images", tmp_path / "images", "--labels", tmp_path / "labels", "--split", "1"]
    assert run("prepare label_images", tmp_path / "out", *words, "--z", "2") == 0
    rles = CocoDataset.load(tmp_path / "out" / "all.json").read_sample(0).layers.layers[0]
    np.testing.assert_array_equal(rles > 0, labels_of(2) > 0)
    assert run("prepare label_images", tmp_path / "out", *words, "--z", "max", "--overwrite") == 2
    assert "no maximum" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "labels" / "a.tif", labels_of(1))
    assert run("prepare label_images", tmp_path / "out", *words, "--z", "max", "--overwrite") == 0
    with pytest.raises(DataError):
        decode_label_image(b"nothing", "a.png")


def test_orientation_is_told_once_and_not_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixel_source._orientations_told.clear()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / name, exif=exif)
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((20, 30), np.uint8), extratags=[(274, 3, 1, 3, True)])
    with caplog.at_level(logging.WARNING):
        shapes = [read_image(tmp_path / name).shape for name in ("a.jpg", "b.jpg", "c.tif")]
    assert shapes == [(20, 30, 1)] * 3
    assert [text.split(": viewers")[0].split("/")[-1] for text in caplog.messages] == [
        "a.jpg: has the Orientation tag 6",
        "c.tif: has the Orientation tag 3",
    ]


def test_colours_of_tiff(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    picture.convert("YCbCr").save(tmp_path / "y.tif")
    assert np.abs(read_image(tmp_path / "y.tif").astype(int) - np.asarray(picture)).mean() < 3
    tifffile.imwrite(tmp_path / "l.tif", np.asarray(picture), photometric="cielab")
    with pytest.raises(DataError, match="save it as RGB"):
        read_image(tmp_path / "l.tif")


def test_splines_of_imagej_are_refused() -> None:
    roi = ImagejRoi.frompoints([[2, 2], [20, 2], [20, 20], [2, 20]])
    roi.roitype = ROI_TYPE.POLYGON
    assert len(read_roi_file(roi.tobytes(), "a.roi", 30, 40).rles) == 1
    roi.options |= ROI_OPTIONS.SPLINE_FIT
    found = read_roi_file(roi.tobytes(), "a.roi", 30, 40)
    assert not found.rles
    assert "spline" in found.problems[0]


def qupath(kind: str, x0: int, y0: int, x1: int, y1: int, **more: object) -> dict[str, object]:
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": kind}, **more}


def test_regions_of_qupath_and_cells_without_nucleus_are_asked_about() -> None:
    detections = [qupath("detection", 5, 5, 9, 9), qupath("cell", 15, 5, 19, 9)]
    data = json.dumps([qupath("annotation", 0, 0, 40, 30), *detections]).encode()
    with pytest.raises(DataError, match="1 of its 1 annotations contain several of its 2 detections and cells"):
        read_features(data, "a.geojson", 30, 40)
    assert len(read_features(data, "a", 30, 40, GeoJsonOptions(object_types=["detection", "cell"])).rles) == 2
    assert len(read_features(data, "a", 30, 40, GeoJsonOptions(object_types=["annotation"])).rles) == 1
    beside = json.dumps([qupath("annotation", 25, 5, 35, 9), *detections]).encode()
    assert len(read_features(beside, "a", 30, 40).rles) == 3
    found = read_features(json.dumps(detections).encode(), "a", 30, 40, GeoJsonOptions(nuclei=True))
    assert len(found.rles) == 1
    assert "is a cell without a nucleus" in found.problems[0]
