"""CZI, LIF and ND2 through bioio's readers, as any other image; without them, what to install or how to export."""

from __future__ import annotations

import importlib.util
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from detseg.errors import DataError
from detseg.images.microscopes import READERS, has_reader
from detseg.images.planes import PlaneChoice
from detseg.images.reading import decode_image, open_pixels, read_image, read_label_image, read_picture, reads_parts

needs_czi = pytest.mark.skipif(
    not (importlib.util.find_spec("bioio_czi") and importlib.util.find_spec("pylibCZIrw")),
    reason="needs the extra microscopes: pip install 'detseg[microscopes]' pylibCZIrw",
)
needs_lif = pytest.mark.skipif(
    not importlib.util.find_spec("bioio_lif"), reason="needs the extra microscopes: pip install 'detseg[microscopes]'"
)
STACK = np.random.default_rng(0).integers(0, 4000, (3, 2, 32, 48)).astype(np.uint16)  # Z, C, Y, X


@pytest.mark.parametrize("ending", READERS)
def test_a_file_that_cannot_be_read_says_what_to_install_or_how_to_export(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"cells{ending.upper()}"
    path.write_bytes(b"II*\x00 of cellSens, whose overview must not pass for the image")
    if not has_reader(path):
        with pytest.raises(DataError, match="OME-TIFF") as refused:
            read_image(path)
        assert str(path) in str(refused.value)
        assert "Fiji" in str(refused.value)
        assert ("pip install 'detseg[microscopes]'" in str(refused.value)) == (ending != ".vsi")
        assert not reads_parts(path)
    else:
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_image(path)
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / f"none{ending}")
    with pytest.raises(DataError, match="unpack"):
        decode_image(b"anything", f"cells{ending}")
    with pytest.raises(DataError, match="label images are PNG, TIFF or NPY"):
        read_label_image(path)


def test_scenes_are_of_these_files_only(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", STACK[0, 0])
    with pytest.raises(DataError, match="have scenes"):
        read_image(tmp_path / "a.npy", {"plane": {"scene": 1}})
    assert PlaneChoice.from_texts(None, None, None, "2").fields() == {"plane": {"scene": 2}}
    with pytest.raises(DataError, match="scene is '-1'"):
        PlaneChoice.from_texts(None, None, None, "-1")


def write_czi(path: Path, stack: np.ndarray = STACK) -> None:
    from pylibCZIrw import czi

    with czi.create_czi(str(path)) as file:
        for z, c in np.ndindex(stack.shape[:2]):
            file.write(data=stack[z, c][..., None], plane={"C": c, "Z": z, "T": 0})
        file.write_metadata(
            document_name="cells", channel_names={0: "DAPI", 1: "GFP"}, scale_x=0.5e-6, scale_y=0.25e-6, scale_z=1e-6
        )


@needs_czi
def test_a_czi_is_an_image_like_any_other(tmp_path: Path) -> None:
    write_czi(tmp_path / "a.czi")
    with pytest.raises(DataError, match="3 slices"):
        read_image(tmp_path / "a.czi")
    image, facts = read_picture(tmp_path / "a.czi", {"plane": {"z": 1}})
    np.testing.assert_array_equal(image, STACK[1].transpose(1, 2, 0))
    assert image.dtype == np.uint16
    assert facts == {"pixel_size": [0.25, 0.5], "channel_names": ["DAPI", "GFP"], "plane": {"z": 1}}
    greatest = read_image(tmp_path / "a.czi", {"plane": {"z": "max"}})
    np.testing.assert_array_equal(greatest, STACK.max(axis=0).transpose(1, 2, 0))
    assert reads_parts(tmp_path / "a.czi")
    with open_pixels(tmp_path / "a.czi", {"plane": {"z": 2}}) as source:
        assert source.stack == {"Z": 3}
        np.testing.assert_array_equal(source.read(5, 7, 9, 40), STACK[2].transpose(1, 2, 0)[5:9, 7:40])


@needs_czi
def test_colours_of_a_czi_are_rgb_and_tiles_are_one_image(tmp_path: Path) -> None:
    from pylibCZIrw import czi

    blue = np.zeros((20, 30, 3), np.uint8)
    blue[..., 0] = 200  # CZI stores blue first
    with czi.create_czi(str(tmp_path / "rgb.czi")) as file:
        file.write(data=blue, plane={"C": 0})
        file.write(data=blue[..., ::-1], plane={"C": 0}, location=(30, 0))
    image = read_image(tmp_path / "rgb.czi")
    assert image[0, ::30].tolist() == [[0, 0, 200], [200, 0, 0]], "the second tile is red"
    with czi.create_czi(str(tmp_path / "mosaic.czi")) as file:
        for x in (0, 30):
            file.write(data=np.full((20, 30, 1), 10 + x, np.uint8), plane={"C": 0}, location=(x, 0))
    assert read_image(tmp_path / "mosaic.czi")[0, ::30, 0].tolist() == [10, 40]


@needs_czi
def test_a_czi_cut_short_is_refused(tmp_path: Path) -> None:
    write_czi(tmp_path / "a.czi")
    data = (tmp_path / "a.czi").read_bytes()
    (tmp_path / "a.czi").write_bytes(data[: len(data) // 3])
    with pytest.raises(DataError, match=r"a\.czi"):
        read_image(tmp_path / "a.czi", {"plane": {"z": 1}})


def write_lif(path: Path, images: dict[str, np.ndarray]) -> None:
    """Write images (C, Y, X) uint8 in Leica's format, of pixels of 0.5 micrometres: XML, then a block for each."""

    def block(content: bytes) -> bytes:
        return struct.pack("<II", 0x70, len(content)) + content

    elements = ""
    for number, (name, array) in enumerate(images.items()):
        channels, height, width = array.shape
        described = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="8" NameOfMeasuredQuantity="" Min="0" '
            f'Max="255" Unit="" LUTName="Green" IsLUTInverted="0" BytesInc="{height * width * channel}" BitInc="0"/>'
            for channel in range(channels)
        )
        sides = "".join(
            f'<DimensionDescription DimID="{axis}" NumberOfElements="{size}" Origin="0" Length="{(size - 1) * 5e-7}" '
            f'Unit="m" BitInc="0" BytesInc="{step}"/>'
            for axis, size, step in ((1, width, 1), (2, height, width))
        )
        elements += (
            f'<Element Name="{name}" Visibility="1"><Data><Image><ImageDescription><Channels>{described}</Channels>'
            f"<Dimensions>{sides}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{array.nbytes}" MemoryBlockID="MemBlock_{number}"/></Element>'
        )
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="project"><Data><Experiment/></Data><Memory Size="0" '
        f'MemoryBlockID="MemBlock_none"/><Children>{elements}</Children></Element></LMSDataContainerHeader>'
    )
    data = block(b"\x2a" + struct.pack("<I", len(xml)) + xml.encode("utf-16-le"))
    for number, array in enumerate(images.values()):
        name = f"MemBlock_{number}"
        head = b"\x2a" + struct.pack("<Q", array.nbytes) + b"\x2a" + struct.pack("<I", len(name))
        data += block(head + name.encode("utf-16-le")) + array.tobytes()
    path.write_bytes(data)


@needs_lif
def test_a_lif_with_several_images_wants_a_choice(tmp_path: Path) -> None:
    first = np.arange(2 * 20 * 30, dtype=np.uint16).astype(np.uint8).reshape(2, 20, 30)
    write_lif(tmp_path / "a.lif", {"first": first, "second": 255 - first})
    with pytest.raises(DataError, match=r"holds 2 images .*second.* --scene"):
        read_image(tmp_path / "a.lif")
    image, facts = read_picture(tmp_path / "a.lif", {"plane": {"scene": 1}})
    np.testing.assert_array_equal(image, (255 - first).transpose(1, 2, 0))
    assert facts["pixel_size"] == pytest.approx(0.5)
    with pytest.raises(DataError, match="scene 2 is chosen"):
        read_image(tmp_path / "a.lif", {"plane": {"scene": 2}})
