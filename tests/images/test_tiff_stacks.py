"""TIFF files of microscopes: slices, points in time, channels and pixel size, chosen or refused, never guessed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from detseg.errors import DataError
from detseg.images.planes import PlaneChoice
from detseg.images.reading import decode_picture, open_pixels, read_image, read_label_image, read_picture

RNG = np.random.default_rng(0)
# T, Z, C, Y, X: no two lengths are the same.
STACK = RNG.integers(0, 60_000, (2, 3, 4, 21, 17), dtype=np.uint16)
NAMES = ["DAPI", "GFP", "RFP", "BF"]
OME = {
    "axes": "TZCYX",
    "PhysicalSizeX": 0.5,
    "PhysicalSizeXUnit": "µm",
    "PhysicalSizeY": 250,
    "PhysicalSizeYUnit": "nm",
    "Channel": {"Name": NAMES},
}


def plane(**choice: object) -> dict[str, object]:
    return {"plane": choice}


def write_ome(path: Path, **options: object) -> None:
    tifffile.imwrite(path, STACK, ome=True, metadata=OME, photometric="minisblack", **options)


def write_imagej(path: Path) -> None:
    metadata = {"axes": "TZCYX", "unit": "micron"}
    tifffile.imwrite(path, STACK, imagej=True, metadata=metadata, resolution=(2, 4))


WRITERS: dict[str, Callable[[Path], None]] = {
    "plain.ome.tif": write_ome,
    "tiled.ome.tif": lambda path: write_ome(path, tile=(16, 16)),
    "zlib_big_tiled.ome.tif": lambda path: write_ome(path, compression="zlib", tile=(16, 16), bigtiff=True),
    "big_endian.ome.tif": lambda path: write_ome(path, byteorder=">"),
    "imagej.tif": write_imagej,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_slice_and_a_time_are_chosen_and_nothing_is_guessed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    for fields, message in (
        ({}, r"3 slices.*--z 0 to 2.*--z max"),
        (plane(z=1), r"2 time points.*--t 0 to 1"),
        (plane(z=3, t=0), r"z 3 is chosen.*3 slices \(0 to 2\)"),
        (plane(z=0, t=2), r"t 2 is chosen.*2 time points"),
        (plane(z=-1, t=0), "z is -1"),
        (plane(z="middle", t=0), "expected a whole number"),
        (plane(z=0, t="max"), "expected a whole number"),
        ({"plane": {"slice": 1}}, "field plane"),
        ({"plane": "z1"}, "field plane"),
    ):
        with pytest.raises(DataError, match=rf"{name}.*{message}"):
            read_image(path, fields)
    image, facts = read_picture(path, plane(z=1, t=1))
    np.testing.assert_array_equal(image, STACK[1, 1].transpose(1, 2, 0))
    np.testing.assert_allclose(facts["pixel_size"], [0.25, 0.5], rtol=1e-6)
    assert facts.get("channel_names") == (NAMES if name.endswith(".ome.tif") else None)
    np.testing.assert_array_equal(read_image(path, plane(z="max", t=0)), STACK[0].max(axis=0).transpose(1, 2, 0))
    in_memory, _ = decode_picture(path.read_bytes(), name, plane(z=2, t=0))
    np.testing.assert_array_equal(in_memory, STACK[0, 2].transpose(1, 2, 0))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_truncated_stack_is_refused_also_for_a_slice_that_is_there(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DataError, match="truncated"):
        read_image(path, plane(z=0, t=0))


def test_the_full_size_of_a_pyramid_is_read(tmp_path: Path) -> None:
    full = RNG.integers(0, 60_000, (4, 96, 128), dtype=np.uint16)
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif", ome=True) as writer:
        options = {"tile": (32, 32), "photometric": "minisblack"}
        writer.write(full, subifds=2, metadata={"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}, **options)
        writer.write(full[:, ::2, ::2], subfiletype=1, **options)
        writer.write(full[:, ::4, ::4], subfiletype=1, **options)
    image, facts = read_picture(tmp_path / "pyramid.ome.tif")
    np.testing.assert_array_equal(image, full.transpose(1, 2, 0))
    assert facts["pixel_size"] == 0.25


def test_pages_without_a_name_are_told_and_can_be_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "pages.tif", STACK[0, 0], photometric="minisblack", metadata=None)
    image, facts = read_picture(tmp_path / "pages.tif")
    assert facts["unnamed_pages"] == image.shape[2] == 4
    image, facts = read_picture(tmp_path / "pages.tif", plane(axes="CYX"))
    assert "unnamed_pages" not in facts
    np.testing.assert_array_equal(read_image(tmp_path / "pages.tif", plane(axes="ZYX", z=2))[:, :, 0], STACK[0, 0, 2])
    with pytest.raises(DataError, match="4 slices"):
        read_image(tmp_path / "pages.tif", plane(axes="ZYX"))
    for choice in ({"z": "max"}, {"z": 0}, {"t": 0}):  # taken for channels, they would be read without the choice
        with pytest.raises(DataError, match=r"pages\.tif: .* its 4 pages .*--axes ZYX"):
            read_image(tmp_path / "pages.tif", plane(**choice))
    for axes in ("YX", "ZCYX", "CYZ", "YYX", "cyx", "C"):
        with pytest.raises(DataError, match=r"pages\.tif: .*axes"):
            read_image(tmp_path / "pages.tif", plane(axes=axes))
    tifffile.imwrite(tmp_path / "five.tif", STACK, photometric="minisblack")
    with pytest.raises(DataError, match=r"five\.tif: the file has the axes QQQYX.*--axes"):
        read_image(tmp_path / "five.tif")
    image = read_image(tmp_path / "five.tif", plane(axes="TZCYX", z=0, t=1))
    np.testing.assert_array_equal(image, STACK[1, 0].transpose(1, 2, 0))


def test_arrays_whose_axes_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK[0])
    with pytest.raises(DataError, match=r"found the shape \(3, 4, 21, 17\); name other axes"):
        read_image(tmp_path / "a.npy")
    image = read_image(tmp_path / "a.npy", plane(axes="ZCYX", z="max"))
    np.testing.assert_array_equal(image, STACK[0].max(axis=0).transpose(1, 2, 0))
    with pytest.raises(DataError, match="expected the axes"):
        read_image(tmp_path / "a.npy", plane(axes="CYX"))


def test_samples_and_channels_at_once_are_refused(tmp_path: Path) -> None:
    colours = np.stack([STACK[0, 0, :3].transpose(1, 2, 0)] * 2)
    tifffile.imwrite(tmp_path / "a.ome.tif", colours, metadata={"axes": "CYXS"}, photometric="rgb")
    with pytest.raises(DataError, match="CYXS"):
        read_image(tmp_path / "a.ome.tif")
    tifffile.imwrite(tmp_path / "b.ome.tif", colours, metadata={"axes": "ZYXS"}, photometric="rgb")
    np.testing.assert_array_equal(read_image(tmp_path / "b.ome.tif", plane(z=1)), colours[1])


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint32, np.uint64, np.float16, np.float64])
def test_numbers_of_other_widths_and_signs_become_float32(tmp_path: Path, dtype: type) -> None:
    values = (STACK[0, 0, 0] % 200).astype(np.int64) - (100 if np.dtype(dtype).kind != "u" else 0)
    tifffile.imwrite(tmp_path / "a.tif", values.astype(dtype))
    image = read_image(tmp_path / "a.tif")
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[:, :, 0], values)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (20_000, 40_000), "resolutionunit": "CENTIMETER"}, [0.25, 0.5]),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
        # What printers are told is no pixel size.
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (1, 1), "resolutionunit": "NONE"}, None),
        ({}, None),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "\\u00B5m"}}, 0.25),
        ({"imagej": True, "resolution": (0.004, 0.004), "metadata": {"unit": "nm"}}, 0.25),
        ({"imagej": True, "resolution": (4, 4), "metadata": {"unit": "pixel"}}, None),
        ({"imagej": True, "resolution": (4, 4)}, None),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.25}}, 0.25),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "mm"}}, 250.0),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "pixel"}}, None),
        ({"ome": True, "metadata": {"PhysicalSizeX": 0}}, None),
        ({"ome": True}, None),
    ],
)
def test_pixel_sizes_of_every_kind_of_tag(tmp_path: Path, options: dict[str, object], expected: object) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, 0, 0], photometric="minisblack", **options)
    size = read_picture(tmp_path / "a.tif")[1].get("pixel_size")
    if expected is None:
        assert size is None
    else:
        np.testing.assert_allclose(size, expected, rtol=1e-5)


def test_broken_ome_text_says_nothing(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, 0, 0], description="<OME><Pixels PhysicalSizeX='0.5'", metadata=None)
    assert read_picture(tmp_path / "a.tif")[1] == {}


def test_fields_of_the_coco_file_go_before_what_the_file_says(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.ome.tif")
    fields = {**plane(z=0, t=0), "pixel_size": 2.0, "channel_names": list("abcd"), "group": "plate 7"}
    assert read_picture(tmp_path / "a.ome.tif", fields)[1] == fields


def test_a_label_image_that_is_a_stack_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.ome.tif", STACK[0, :, 0], metadata={"axes": "ZYX"}, photometric="minisblack")
    with pytest.raises(DataError, match="3 slices"):
        read_label_image(tmp_path / "z.ome.tif")


def test_choices_as_text_and_as_fields() -> None:
    assert PlaneChoice.from_texts("3", None, "tzyx") == PlaneChoice(3, None, "TZYX")
    for choice in (PlaneChoice(), PlaneChoice("max"), PlaneChoice(0, 0), PlaneChoice(axes="CYX")):
        assert PlaneChoice.from_fields(choice.fields()) == choice
    assert PlaneChoice().fields() == {}
    for texts in (("-1", None, None), ("1.5", None, None), (None, "max", None), (None, None, "RGB")):
        with pytest.raises(DataError):
            PlaneChoice.from_texts(*texts)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"rowsperstrip": 5}])
def test_parts_are_those_of_the_whole_image(tmp_path: Path, options: dict[str, object]) -> None:
    for name, compression in (("plain", None), ("lzw", "lzw"), ("zlib", "zlib")):
        write_ome(tmp_path / f"{name}.ome.tif", compression=compression, **options)
        with open_pixels(tmp_path / f"{name}.ome.tif", plane(z=2, t=1)) as source:
            whole = source.read_all()
            np.testing.assert_array_equal(whole, STACK[1, 2].transpose(1, 2, 0))
            for y0, x0, y1, x1 in ((0, 0, 1, 1), (3, 2, 20, 17), (0, 5, 21, 6), (20, 16, 21, 17)):
                np.testing.assert_array_equal(source.read(y0, x0, y1, x1), whole[y0:y1, x0:x1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_palettes_alpha_cmyk_and_white_that_is_0_mean_the_same_in_parts(tmp_path: Path, dtype: type) -> None:
    gray = STACK[0, 0, 0].astype(dtype)
    colours = np.stack([STACK[0, 0, index].astype(dtype) for index in range(4)], axis=2)
    colormap = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
    for name, image, options in (
        ("white", gray, {"photometric": "miniswhite"}),
        ("alpha", colours, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        ("cmyk", colours, {"photometric": "separated"}),
        ("palette", gray, {"photometric": "palette", "colormap": colormap}),
    ):
        if name == "palette" and dtype is np.uint16:
            continue
        tifffile.imwrite(tmp_path / f"{name}.tif", image, compression="lzw", rowsperstrip=5, **options)
        whole = read_image(tmp_path / f"{name}.tif")
        with open_pixels(tmp_path / f"{name}.tif") as source:
            np.testing.assert_array_equal(source.read(4, 3, 17, 9), whole[4:17, 3:9])
        if name == "white":
            np.testing.assert_array_equal(whole[:, :, 0], np.iinfo(dtype).max - gray)
            np.testing.assert_array_equal(read_label_image(tmp_path / "white.tif"), gray)
        elif name == "palette":
            np.testing.assert_array_equal(whole, (colormap[:, gray] >> 8).transpose(1, 2, 0))
            np.testing.assert_array_equal(read_label_image(tmp_path / "palette.tif"), gray)
        elif name == "alpha":
            np.testing.assert_array_equal(whole, colours[:, :, :3])
        else:
            assert whole.shape[2] == 3


WITHOUT_CODECS = """
import sys
sys.modules["imagecodecs"] = None
from detseg.images.reading import read_image
read_image(sys.argv[1], {"plane": {"z": 2, "t": 1}})
"""


def test_a_compression_that_needs_imagecodecs_says_so(tmp_path: Path) -> None:
    write_ome(tmp_path / "lzw.ome.tif", compression="lzw")
    words = [sys.executable, "-c", WITHOUT_CODECS, str(tmp_path / "lzw.ome.tif")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert "pip install imagecodecs" in done.stderr.splitlines()[-1]
