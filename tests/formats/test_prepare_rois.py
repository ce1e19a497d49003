"""ImageJ's regions: outlines along pixel edges to the pixel, every kind of area, groups as classes, broken archives."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from readers_for_tests import HEIGHT, WIDTH, expected_masks, labels_of, masks_by_class, run, write_image
from roifile import ROI_OPTIONS, ROI_TYPE, ImagejRoi, roiwrite

from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.formats.imagej import read_roi_file
from detseg.structures import rle as rle_codec


def rectangle(x0: int, y0: int, x1: int, y1: int, name: str, group: int = 0) -> ImagejRoi:
    roi = ImagejRoi.frompoints([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], name=name)
    roi.roitype = ROI_TYPE.POLYGON
    roi.group = group
    return roi


def composite(rings: list[list[list[float]]], name: str) -> ImagejRoi:
    """A region of several outlines, as ImageJ stores shapes: commands MOVETO (0), LINETO (1), CLOSE (4)."""
    path: list[float] = []
    for ring in rings:
        for number, (x, y) in enumerate(ring):
            path += [float(number > 0), x, y]
        path.append(4.0)
    points = np.array([point for ring in rings for point in ring])
    roi = ImagejRoi()
    roi.version, roi.roitype, roi.name = 227, ROI_TYPE.RECT, name
    roi.left, roi.top = (int(value) for value in points.min(axis=0))
    roi.right, roi.bottom = (int(value) for value in points.max(axis=0))
    roi.shape_roi_size = len(path)
    roi.multi_coordinates = np.array(path, dtype=np.float32)
    return roi


def block(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def rois_of_labels() -> list[ImagejRoi]:
    """The objects of `labels_of()`."""
    return [
        rectangle(3, 2, 9, 9, "first", group=1),
        rectangle(9, 2, 13, 9, "second", group=2),
        composite([block(10, 12, 20, 22), block(13, 15, 16, 18)], "ring"),
        composite([block(30, 25, 34, 28), block(36, 25, 39, 28)], "pieces"),
    ]


def test_regions_to_the_pixel(tmp_path: Path) -> None:
    source = tmp_path / "cells"
    for name in ("a", "b", "c", "d"):
        write_image(source / f"{name}.png")
    roiwrite(source / "a.zip", rois_of_labels())
    roiwrite(source / "b_rois.zip", rois_of_labels())
    roiwrite(source / "RoiSet_c.zip", rois_of_labels())
    rois_of_labels()[0].tofile(source / "d.roi")
    assert run("prepare imagej", tmp_path / "out", "--source", source, "--split", "1") == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    for index in range(3):
        assert masks_by_class(dataset, index) == expected_masks(labels_of())
    assert masks_by_class(dataset, 3) == expected_masks(np.where(labels_of() == 4, 4, 0))


def test_groups_and_names_are_classes_by_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "cells"
    write_image(source / "a.png")
    roiwrite(source / "a.zip", rois_of_labels())
    (tmp_path / "classes.yaml").write_text("1: astro\n2: neuron\nring: astro\n")
    words = ("--source", source, "--split", "1", "--classes-from", f"map:{tmp_path / 'classes.yaml'}")
    assert run("prepare imagej", tmp_path / "out", *words) == 2
    assert "has no line for 'pieces', the label of 1 objects in 1 images" in capsys.readouterr().err
    (tmp_path / "classes.yaml").write_text("1: astro\n2: neuron\nring: astro\npieces: null\n")
    assert run("prepare imagej", tmp_path / "out", *words) == 0
    dataset = CocoDataset.load(tmp_path / "out" / "all.json")
    assert dataset.class_names == ["astro", "neuron"]
    labels = labels_of()
    expected = expected_masks(np.where(labels == 300, 0, labels), {4: "astro", 7: "neuron", 9: "astro"})
    assert masks_by_class(dataset, 0) == expected


def read(*rois: ImagejRoi) -> list[np.ndarray]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number, roi in enumerate(rois):
            archive.writestr(f"{number}.roi", roi.tobytes())
    found = read_roi_file(file.getvalue(), "a.zip", HEIGHT, WIDTH)
    assert found.problems == []
    return [rle_codec.decode(rle) for rle in found.rles]


def test_every_kind_of_area() -> None:
    rect = ImagejRoi()
    rect.roitype, rect.left, rect.top, rect.right, rect.bottom = ROI_TYPE.RECT, 2, 3, 7, 9
    oval = ImagejRoi()
    oval.roitype, oval.left, oval.top, oval.right, oval.bottom = ROI_TYPE.OVAL, 10, 5, 20, 25
    fraction = ImagejRoi()
    fraction.version, fraction.roitype, fraction.options = 227, ROI_TYPE.RECT, ROI_OPTIONS.SUB_PIXEL_RESOLUTION
    fraction.left, fraction.top, fraction.right, fraction.bottom = 1, 1, 5, 5
    fraction.xd, fraction.yd, fraction.widthd, fraction.heightd = 0.6, 0.4, 3.0, 3.0
    freehand = ImagejRoi.frompoints([[0.4, 0.4], [6.6, 0.4], [6.6, 3.6], [0.4, 3.6]])
    rect_mask, oval_mask, fraction_mask, freehand_mask = read(rect, oval, fraction, freehand)
    assert rect_mask.sum() == 30
    assert rect_mask[3:9, 2:7].all()
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    np.testing.assert_array_equal(oval_mask, ((x - 15) / 5) ** 2 + ((y - 15) / 10) ** 2 <= 1)
    np.testing.assert_array_equal(np.argwhere(fraction_mask)[[0, -1]], [[0, 1], [2, 3]])
    assert freehand_mask.sum() == 7 * 4


def test_what_leaves_the_image_is_cut_off() -> None:
    (mask,) = read(rectangle(-5, -5, 3, 2, "corner"))
    assert mask.sum() == 6
    assert mask[:2, :3].all()


def test_lines_points_and_regions_outside_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ImagejRoi.frompoints([[1, 1], [9, 9]])
    line.roitype = ROI_TYPE.POLYLINE
    point = ImagejRoi.frompoints([[1, 1]])
    point.roitype = ROI_TYPE.POINT
    source = tmp_path / "cells"
    write_image(source / "a.png")
    rois = [rectangle(1, 1, 5, 5, "good"), line, point, rectangle(90, 90, 95, 95, "far")]
    roiwrite(source / "a.zip", rois, name=["good", "line", "point", "far"])
    with zipfile.ZipFile(source / "a.zip", "a") as archive:
        archive.writestr("torn.roi", rectangle(1, 1, 5, 5, "x").tobytes()[:70])
        archive.writestr("none.roi", b"no region")
    assert run("prepare imagej", tmp_path / "out", "--source", source, "--split", "1") == 2
    message = capsys.readouterr().err
    for text in (
        "5 problems",
        "line: is a polyline",
        "point: is a point",
        "far: covers no pixel",
        "torn: is not an ImageJ region",
    ):
        assert text in message
    assert run("prepare imagej", tmp_path / "out", "--source", source, "--split", "1", "--skip-bad") == 0
    assert CocoDataset.load(tmp_path / "out" / "all.json").num_objects == 1


def test_broken_archives_and_stacks_are_refused() -> None:
    for content in (b"", b"PK\x03\x04 torn", b"Iout"):
        try:
            found = read_roi_file(content, "a.zip", HEIGHT, WIDTH)
        except DataError:
            continue
        assert found.rles == []
        assert len(found.problems) == 1
    empty, other = io.BytesIO(), io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    assert read_roi_file(empty.getvalue(), "a.zip", HEIGHT, WIDTH).rles == []
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.png", b"")
    with pytest.raises(DataError, match=r"contains a\.png but no \.roi"):
        read_roi_file(other.getvalue(), "a.zip", HEIGHT, WIDTH)
    first, second = rectangle(1, 1, 5, 5, "a"), rectangle(1, 1, 5, 5, "b")
    first.z_position, second.z_position = 1, 2
    with pytest.raises(DataError, match="several slices"):
        read(first, second)


def test_a_curve_and_a_broken_path_are_told() -> None:
    curved = composite([block(1, 1, 5, 5)], "curved")
    curved.multi_coordinates = np.array([0, 1, 1, 2, 3, 3, 5, 5, 4], dtype=np.float32)
    curved.shape_roi_size = 9
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("curved.roi", curved.tobytes())
        archive.writestr("good.roi", rectangle(1, 1, 5, 5, "good").tobytes())
        header = bytearray(rectangle(1, 1, 5, 5, "x").tobytes())
        struct.pack_into(">H", header, 16, 60_000)  # claims more points than there are
        archive.writestr("short.roi", bytes(header))
    found = read_roi_file(file.getvalue(), "a.zip", HEIGHT, WIDTH)
    assert len(found.rles) == 1
    assert len(found.problems) == 2
    assert "has curves" in found.problems[0]
