"""Prediction goes on past files that are broken or hang their reader, and lists them; pipes are not waited for."""

from __future__ import annotations

import io
import os
import shutil
import struct

import numpy as np
import pytest
import tifffile

from detseg.cli.main import main
from detseg.coco.predictions_file import read_predictions

GRAY = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
FIRST = 8  # where the first IFD of a small TIFF begins
TAGS = {"width": 256, "bits": 258, "compression": 259, "offsets": 273, "counts": 279, "tile width": 322, "SubIFDs": 330}


def tiff(**options) -> bytearray:
    file = io.BytesIO()
    tifffile.imwrite(file, GRAY, metadata=None, **options)
    return bytearray(file.getvalue())


def with_tag(data: bytearray, name: str, value: int) -> bytearray:
    for at in range(FIRST + 2, next_page(data), 12):
        code, kind = struct.unpack_from("<HH", data, at)
        if code == TAGS[name]:
            struct.pack_into("<H" if kind == 3 else "<I", data, at + 8, value)
            return data
    raise AssertionError(name)


def next_page(data: bytearray) -> int:
    return FIRST + 2 + 12 * struct.unpack_from("<H", data, FIRST)[0]


def pages_that_come_back() -> bytearray:
    data = tiff()
    struct.pack_into("<I", data, next_page(data), FIRST)
    return data


def sub_pages_that_come_back(*, is_page: bool) -> bytearray:
    """The sub-pages of the page are the page itself; is_page: and so is the next page."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(GRAY, subifds=1, metadata=None)
        writer.write(GRAY[::2, ::2], subfiletype=1, metadata=None)
    data = with_tag(bytearray(file.getvalue()), "SubIFDs", FIRST)
    if is_page:
        struct.pack_into("<I", data, next_page(data), FIRST)
    return data


BROKEN = {
    "pages": pages_that_come_back(),
    "subpages": sub_pages_that_come_back(is_page=True),
    "width": with_tag(tiff(), "width", 0),
    "bits": with_tag(tiff(), "bits", 0),
    "compression": with_tag(tiff(), "compression", 9999),
    "offsets": with_tag(tiff(), "offsets", 2**31),
    "counts": with_tag(tiff(), "counts", 2**32 - 1),
    "tiles": with_tag(tiff(tile=(32, 32)), "tile width", 0),
    "cut": tiff()[:-100],
}


@pytest.mark.parametrize("tile", ["auto", "32"])
def test_broken_tiffs_are_listed_and_the_others_predicted(small_run, image_folder, tmp_path, capsys, tile):
    folder, output = tmp_path / "images", tmp_path / "found.json"
    shutil.copytree(image_folder, folder)
    for name, data in BROKEN.items():
        (folder / f"{name}.tif").write_bytes(data)
    (folder / "harmless.tif").write_bytes(sub_pages_that_come_back(is_page=False))
    words = ["--run", str(small_run), "--images", str(folder), "--output", str(output), "--tile", tile]
    assert main(["predict", *words]) == 1
    said = capsys.readouterr().out
    assert f"{len(BROKEN)} images could not be predicted" in said
    for name in BROKEN:
        assert f"{folder / name}.tif: the image" in said
    assert [image.file_name for image in read_predictions(output)] == ["a.png", "b.png", "c.png", "harmless.tif"]


@pytest.mark.parametrize(
    "command",
    [
        "predict --run RUN --images PIPE --output OUT.json",
        "predict --run RUN --images /dev/zero --output OUT.json",
        "predict --run RUN --images IMAGES --output OUT.json --postprocess PIPE",
        "predict --run RUN --images IMAGES --output OUT.json --boxes PIPE.json",
        "predict --run RUN --images IMAGES --output OUT.json --checkpoint PIPE",
        "predict --weights PIPE --images IMAGES --output OUT.json",
        "predict --weights /dev/zero --config PIPE --images IMAGES --output OUT.json",
        "train_net --config PIPE",
        "inspect_data --data PIPE.json --output OUT",
        "evaluate --ground-truth PIPE.json --predictions PIPE.json",
        "fuse --inputs PIPE.json PIPE.json --output OUT.json",
        "split PIPE.json --output OUT",
        "repair PIPE.json OUT.json",
        "prepare label_images --images PIPE --labels PIPE --output OUT",
        "prepare sartorius --source PIPE --output OUT",
        "convert_weights PIPE OUT.pth",
    ],
)
def test_pipes_and_devices_are_not_waited_for(small_run, image_folder, tmp_path, capsys, command):
    for name in ("PIPE", "PIPE.json"):
        os.mkfifo(tmp_path / name)
    places = {"RUN": str(small_run), "IMAGES": str(image_folder)}
    words = [
        places.get(word, str(tmp_path / word) if word.startswith(("PIPE", "OUT")) else word) for word in command.split()
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "is a pipe" in said or "is a device" in said
    assert "does not exist" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["PIPE", "PIPE.json"]
