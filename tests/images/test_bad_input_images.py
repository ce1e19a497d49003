"""Bad images and label images on the command line: one message with file and remedy, status 2, nothing lost.

What can be read rightly (palettes, 1 bit, CMYK, names of any kind) is read.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.errors import DataError
from detseg.images.reading import decode_image, decode_label_image, read_image

HEIGHT, WIDTH = 12, 16
GRAY = (np.arange(HEIGHT * WIDTH, dtype=np.uint8) % 199).reshape(HEIGHT, WIDTH)
LABELS = np.zeros((HEIGHT, WIDTH), np.uint8)
LABELS[2:5, 2:5], LABELS[7:11, 8:14] = 1, 2


def packed(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge(suffix: str) -> bytes:
    """A small file whose header claims 60,000 x 60,000 pixels."""
    side = 60_000
    if suffix == ".png":
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    if suffix == ".jpg":
        data = bytearray(packed(Image.fromarray(GRAY), "JPEG"))
        start = data.index(b"\xff\xc0")
        data[start + 5 : start + 9] = struct.pack(">HH", side, side)
        return bytes(data)
    if suffix == ".bmp":
        data = bytearray(packed(Image.fromarray(GRAY), "BMP"))
        data[18:26] = struct.pack("<ii", side, side)
        return bytes(data)
    if suffix == ".npy":
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (side, side)})
        return file.getvalue()
    data = bytearray(tiff(GRAY))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            offset = file.pages[0].tags[tag].valueoffset
            data[offset : offset + 2] = struct.pack("<H", side)
    return bytes(data)


def animated() -> bytes:
    frames = [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy())]
    return packed(frames[0], "PNG", save_all=True, append_images=frames[1:])


BAD_IMAGES = {
    "zero_bytes.png": (b"", "the file is empty (0 bytes)"),
    "truncated.png": (packed(Image.fromarray(GRAY), "PNG")[:-30], "the image is truncated"),
    "truncated.jpg": (packed(Image.fromarray(GRAY), "JPEG")[:-60], "the image is truncated"),
    "truncated.tif": (tiff(GRAY)[:-40], "the image is truncated"),
    "truncated.npy": (npy(GRAY)[:-1], "the image is truncated: 191 bytes of 192 are there"),
    "animated.png": (animated(), "the file has 2 images; save every image as a separate file"),
    "stack.tif": (tiff(np.zeros((5, HEIGHT, WIDTH), np.uint16), imagej=True, metadata={"axes": "ZYX"}), "5 slices"),
    "text.png": (b"a text file called .png", "the file is not an image (none of the known kinds"),
    "not_finite.npy": (npy(np.full((HEIGHT, WIDTH), np.nan)), "not finite"),
    "no_pixels.npy": (npy(np.zeros((0, 4))), "no pixels"),
    **{
        f"huge{suffix}": (
            huge(suffix),
            "claims 60000 x 60000 pixels (height x width), 3600000000 in all, but the limit",
        )
        for suffix in (".png", ".jpg", ".bmp", ".tif", ".npy")
    },
}


def palette() -> bytes:
    image = Image.fromarray(GRAY).convert("P")
    image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    return packed(image, "PNG")


GOOD_IMAGES = {
    "cmyk.jpg": (packed(Image.new("CMYK", (WIDTH, HEIGHT), (0, 0, 0, 255)), "JPEG"), np.zeros(3)),
    "cmyk.tif": (packed(Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)), "TIFF"), np.array([255, 0, 0])),
    "palette.png": (palette(), np.dstack([GRAY, 255 - GRAY, np.full_like(GRAY, 7)])),
    "one_bit.png": (packed(Image.fromarray(GRAY > 99), "PNG"), (GRAY > 99)[:, :, None] * 255),
    "a name with spaces.png": (packed(Image.fromarray(GRAY), "PNG"), GRAY[:, :, None]),
    "Zelle µ ゾウ 🦠.png": (packed(Image.fromarray(GRAY), "PNG"), GRAY[:, :, None]),
    "[a]{b}(c)#%&';$HOME.png": (packed(Image.fromarray(GRAY), "PNG"), GRAY[:, :, None]),
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """images and labels, three good pairs, and where the output goes."""
    images, labels = tmp_path / "my images", tmp_path / "my labels"
    for name in ("a", "b", "c"):
        add_pair(images, labels, f"{name}.png", packed(Image.fromarray(GRAY), "PNG"))
    return images, labels, tmp_path / "out put"


def add_pair(images: Path, labels: Path, name: str, image: bytes, label: bytes | None = None) -> None:
    for folder, data in ((images, image), (labels, packed(Image.fromarray(LABELS), "PNG") if label is None else label)):
        folder.mkdir(exist_ok=True)
        suffix = Path(name).suffix if folder is images else ".npy" if data[:6] == b"\x93NUMPY" else ".png"
        (folder / name).with_suffix(suffix).write_bytes(data)


def prepare(folders: tuple[Path, Path, Path], *options: str) -> int:
    images, labels, output = map(str, folders)
    return main(["prepare", "label_images", "--images", images, "--labels", labels, "--output", output, *options])


def check_refused_then_skipped(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], *parts: str
) -> None:
    """The message says it all; nothing is written; --skip-bad leaves one image out and lists it."""
    output = folders[2]
    assert prepare(folders) == 2
    message = capsys.readouterr().err
    for part in (*parts, "--skip-bad"):
        assert part in message
    assert "Traceback" not in message
    assert not output.exists()
    assert prepare(folders, "--split", "1", "--skip-bad") == 0
    assert "1 problem" in capsys.readouterr().out
    assert parts[0] in (output / "skipped.txt").read_text(encoding="utf-8")
    assert len(CocoDataset.load(output / "all.json")) == 3


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], name: str) -> None:
    data, text = BAD_IMAGES[name]
    add_pair(*folders[:2], name, data)
    check_refused_then_skipped(folders, capsys, str(folders[0] / name), text)


def test_the_size_that_a_header_claims_takes_no_memory(tmp_path: Path) -> None:
    """In a process that may have 1.5 GB more than it has after its imports, and is told how to have more."""
    resource = pytest.importorskip("resource")
    del resource
    for suffix in (".png", ".jpg", ".bmp", ".tif", ".npy"):
        (tmp_path / f"huge{suffix}").write_bytes(huge(suffix))
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from detseg.images.reading import read_image\n"
        "from detseg.errors import DataError\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000,) * 2)\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_image(path)\n"
        "    except DataError as error: print(error)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    paths = [str(path) for path in sorted(tmp_path.glob("huge*"))]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 5
    assert all("DETSEG_MAX_PIXELS" in line for line in lines), lines


def test_the_limit_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(packed(Image.fromarray(GRAY), "PNG"))
    monkeypatch.setenv("DETSEG_MAX_PIXELS", str(GRAY.size))
    assert read_image(tmp_path / "a.png").shape == (HEIGHT, WIDTH, 1)
    for value, text in ((str(GRAY.size - 1), "claims 12 x 16"), ("many", "expected a number of pixels")):
        monkeypatch.setenv("DETSEG_MAX_PIXELS", value)
        with pytest.raises(Exception, match=text):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_unusual_images_and_names_are_read_rightly(folders: tuple[Path, Path, Path], name: str) -> None:
    data, pixels = GOOD_IMAGES[name]
    try:
        add_pair(*folders[:2], name, data)
    except OSError:
        pytest.skip("this file system does not take the name")
    assert prepare(folders, "--split", "1") == 0
    dataset = CocoDataset.load(folders[2] / "all.json")
    index = [record.file_name for record in dataset.images].index(name)
    sample = dataset.read_sample(index)
    np.testing.assert_array_equal(sample.image, np.broadcast_to(pixels, sample.image.shape))
    np.testing.assert_array_equal(sample.layers.layers[0], LABELS)


BAD_LABELS = {
    "another size": (npy(np.zeros((HEIGHT, WIDTH + 1), np.uint8)), "12 x 17 pixels"),
    "fractions": (npy(np.full((HEIGHT, WIDTH), 0.5)), "this one has fractions"),
    "negative": (npy(np.full((HEIGHT, WIDTH), -1)), "labels are between 0 (background) and 2147483647"),
    "too large": (npy(np.full((HEIGHT, WIDTH), 2**40)), "labels are between"),
    "colours": (packed(Image.fromarray(np.dstack([LABELS] * 3)), "PNG"), "has 3 channels; save the object numbers"),
    "truncated": (packed(Image.fromarray(LABELS), "PNG")[:-30], "the image is truncated"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_bad_label_image(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str], case: str) -> None:
    data, text = BAD_LABELS[case]
    add_pair(*folders[:2], "bad.png", packed(Image.fromarray(GRAY), "PNG"), data)
    check_refused_then_skipped(folders, capsys, str(folders[1] / "bad."), text)


def test_label_images_without_objects_are_images_without_objects(folders: tuple[Path, Path, Path]) -> None:
    add_pair(*folders[:2], "none.png", packed(Image.fromarray(GRAY), "PNG"), npy(np.zeros((HEIGHT, WIDTH))))
    assert prepare(folders, "--split", "1") == 0
    assert CocoDataset.load(folders[2] / "all.json").objects_per_image().sum(axis=1).tolist() == [2, 2, 2, 0]


def test_two_images_of_one_name(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (folders[0] / "a.bmp").write_bytes(packed(Image.fromarray(GRAY), "BMP"))
    check_refused_then_skipped(folders, capsys, "a.png: has the same name as", "keep one of them")


def test_a_name_that_is_no_text(folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsencode(folders[0]) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:
            file.write(packed(Image.fromarray(GRAY), "PNG"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    check_refused_then_skipped(folders, capsys, "caf\\udce9.png", "rename the file")


def test_a_terminal_that_cannot_show_a_name(folders: tuple[Path, Path, Path]) -> None:
    add_pair(*folders[:2], "µ.png", b"")
    images, labels, output = map(str, folders)
    words = ["prepare", "label_images", "--images", images, "--labels", labels, "--output", output, "--classes", "µ"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "detseg", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert "\\xb5.png: the file is empty" in done.stderr


def test_an_output_that_is_a_file_or_cannot_be_written(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folders[2].write_text("mine")
    assert prepare(folders) == 2
    assert "the output folder cannot be made" in capsys.readouterr().err
    assert folders[2].read_text() == "mine"


DAMAGED = {
    "a.png": packed(Image.fromarray(GRAY), "PNG"),
    "deep.png": packed(Image.fromarray(GRAY.astype(np.uint16) * 250), "PNG"),
    "palette.png": palette(),
    "a.jpg": packed(Image.fromarray(GRAY), "JPEG"),
    "a.bmp": packed(Image.fromarray(GRAY), "BMP"),
    "a.tif": tiff(GRAY.astype(np.uint16)),
    "zlib.tif": tiff(np.dstack([GRAY] * 3), compression="zlib", photometric="rgb"),
    "a.npy": npy(GRAY),
}


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(DAMAGED)), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
def test_damaged_bytes_are_an_image_or_a_data_error(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(DAMAGED[name])
    for position, value in changes:
        # The header is where damage does most: every second change goes there.
        data[position % (min(len(data), 200) if position % 2 else len(data))] = value
    for decode in (decode_image, decode_label_image):
        with contextlib.suppress(DataError):
            array = decode(bytes(data), name)
            assert 0 not in array.shape
            assert array.dtype in (np.uint8, np.uint16, np.int32, np.float32)
