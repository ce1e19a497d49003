"""Reading image and label files: every kind exactly, broken ones refused by a message that names the file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from detseg.errors import DataError
from detseg.images.reading import read_image, read_label_image

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (40, 50), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (40, 50), dtype=np.uint16)
RGB = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (40, 50, 3), dtype=np.uint16)
LABELS = RNG.integers(0, 60_000, (40, 50)).astype(np.int32)


def write_with_opencv(path: Path, rgb: np.ndarray) -> None:
    order = [2, 1, 0, 3][: rgb.shape[2]]
    path.write_bytes(cv2.imencode(path.suffix, rgb[:, :, order])[1].tobytes())


def write_gray16_png(path: Path) -> None:
    Image.fromarray(GRAY16).save(path)


WRITERS = {
    "gray.png": (lambda path: Image.fromarray(GRAY).save(path), GRAY),
    "gray.bmp": (lambda path: Image.fromarray(GRAY).save(path), GRAY),
    "rgb.png": (lambda path: Image.fromarray(RGB).save(path), RGB),
    "rgb.bmp": (lambda path: Image.fromarray(RGB).save(path), RGB),
    "rgba.png": (lambda path: Image.fromarray(np.dstack([RGB, GRAY])).save(path), RGB),
    "gray_alpha.png": (lambda path: Image.fromarray(np.dstack([GRAY, GRAY])).save(path), GRAY),
    "one_bit.png": (lambda path: Image.fromarray(GRAY > 127).save(path), (GRAY > 127) * np.uint8(255)),
    "gray16.png": (write_gray16_png, GRAY16),
    "rgb16.png": (lambda path: write_with_opencv(path, RGB16), RGB16),
    "rgba16.png": (lambda path: write_with_opencv(path, np.dstack([RGB16, GRAY16])), RGB16),
    "gray.tif": (lambda path: tifffile.imwrite(path, GRAY), GRAY),
    "big_endian.tif": (lambda path: tifffile.imwrite(path, GRAY16, byteorder=">"), GRAY16),
    "big.tif": (lambda path: tifffile.imwrite(path, GRAY16, bigtiff=True), GRAY16),
    "rgb16.tiff": (lambda path: tifffile.imwrite(path, RGB16, photometric="rgb"), RGB16),
    "planar.tif": (
        lambda path: tifffile.imwrite(path, RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        RGB,
    ),
    "zlib.tif": (lambda path: tifffile.imwrite(path, GRAY16, compression="zlib"), GRAY16),
    "lzw.tif": (lambda path: Image.fromarray(GRAY16).save(path, compression="tiff_lzw"), GRAY16),
    "lzw_rgb16.tif": (lambda path: write_with_opencv(path, RGB16), RGB16),
    "float.tif": (lambda path: tifffile.imwrite(path, GRAY16.astype(np.float32) / 7), GRAY16.astype(np.float32) / 7),
    "imagej.tif": (
        lambda path: tifffile.imwrite(path, RGB16.transpose(2, 0, 1)[:2], imagej=True, metadata={"axes": "CYX"}),
        RGB16[:, :, :2],
    ),
    "four_channels.tif": (
        lambda path: tifffile.imwrite(path, np.stack([GRAY16] * 4), photometric="minisblack"),
        np.dstack([GRAY16] * 4),
    ),
    "gray.npy": (lambda path: np.save(path, GRAY16), GRAY16),
    "double.npy": (lambda path: np.save(path, RGB.astype(np.float64)), RGB.astype(np.float32)),
    "int32.npy": (lambda path: np.save(path, GRAY16.astype(np.int32)), GRAY16.astype(np.float32)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_pixels_come_back_exactly(tmp_path: Path, name: str) -> None:
    write, expected = WRITERS[name]
    write(tmp_path / name)
    image = read_image(tmp_path / name)
    expected = expected if expected.ndim == 3 else expected[:, :, None]
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)


def test_jpeg_is_read_as_rgb(tmp_path: Path) -> None:
    red = np.zeros((32, 32, 3), dtype=np.uint8)
    red[:, :, 0] = 200
    Image.fromarray(red).save(tmp_path / "red.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "red.jpg").astype(int) - red).max() < 4


def test_exif_orientation_is_not_applied_because_masks_are_drawn_on_stored_pixels(tmp_path: Path) -> None:
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 50, 3)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused_and_never_half_an_image(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    WRITERS[name][0](path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError, match=name):
        read_image(path)


def test_truncated_is_refused_although_another_package_told_pillow_to_tolerate_it(tmp_path: Path, monkeypatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="truncated"):
        read_image(tmp_path / "cut.jpg")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    "content", [b"GIF89a", b"hello", b"\x89PNG\r\n\x1a\n", b"II*\x00\x08\x00\x00\x00\xff\xff", b"\0" * 99]
)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".jpg"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"strange{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="strange"):
        read_image(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "absent.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png"):
        read_image(tmp_path / "folder.png")


def test_stacks_pickles_and_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((5, 8, 8), np.uint16), imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(DataError, match="5 slices"):
        read_image(tmp_path / "z.tif")
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"object\.npy"):
        read_image(tmp_path / "object.npy")
    np.save(tmp_path / "nan.npy", np.array([[1.0, np.nan]]))
    with pytest.raises(DataError, match="not finite"):
        read_image(tmp_path / "nan.npy")
    np.save(tmp_path / "first.npy", np.zeros((3, 64, 64)))
    with pytest.raises(DataError, match="move the channels to the last axis"):
        read_image(tmp_path / "first.npy")
    np.save(tmp_path / "none.npy", np.zeros((0, 4)))
    with pytest.raises(DataError, match="no pixels"):
        read_image(tmp_path / "none.npy")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.png", np.uint8), ("a.png", np.uint16), ("a.tif", np.int32), ("a.tif", np.uint32), ("a.tif", np.uint8)]
    + [("a.npy", dtype) for dtype in (np.uint8, np.uint16, np.int32, np.int64, np.uint64, np.float32, bool)],
)
def test_labels_of_every_width_come_back_exactly(tmp_path: Path, name: str, dtype: type) -> None:
    labels = (LABELS % 251 if dtype == np.uint8 else LABELS % 2 if dtype is bool else LABELS).astype(dtype)
    path = tmp_path / name
    if path.suffix == ".png":
        Image.fromarray(labels).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, labels)
    else:
        np.save(path, labels)
    read = read_label_image(path)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels.astype(np.int64))


def test_indices_of_a_palette_are_the_labels(tmp_path: Path) -> None:
    palette = Image.fromarray(LABELS.astype(np.uint8) % 20, mode=None).convert("P")
    palette.putdata((LABELS % 20).ravel().tolist())
    palette.putpalette([value for index in range(256) for value in (255 - index, index, 7)])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_image(tmp_path / "palette.png"), LABELS % 20)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((4, 4), -1), "between 0"),
        (np.full((4, 4), 0.5), "fractions"),
        (np.full((4, 4), 2**31), "between 0"),
        (np.full((4, 4), np.inf), "between 0"),
        (np.full((4, 4), np.nan), "fractions"),
        (np.zeros((4, 4, 3), np.uint8), "3 channels"),
        (np.zeros((4, 4), complex), "array of numbers"),
    ],
)
def test_label_images_that_are_none_are_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    np.save(tmp_path / "bad.npy", labels)
    with pytest.raises(DataError, match=rf"bad\.npy.*{message}"):
        read_label_image(tmp_path / "bad.npy")
