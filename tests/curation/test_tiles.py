"""`split --tile`: the tiles are the images to the last pixel, objects go with them, and no image is in two parts."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detseg.cli.main import main
from detseg.coco.dataset import CocoDataset
from detseg.coco.json_files import annotations_of, write_coco
from detseg.structures import rle as rle_codec

HEIGHT, WIDTH = 64, 96
OBJECTS = ((0, 10, 10, 30, 30), (1, 25, 40, 60, 50), (0, 30, 2, 64, 6))  # class, x0, y0, x1, y1
NAMES = ("plate/a.png", "plate/a.npy", "b.png", "c.png", "d.png")


def mask_of(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def picture(index: int, name: str) -> np.ndarray:
    """Every pixel another: RGB, of which one is in 16 bits and one float32 with two channels."""
    rng = np.random.default_rng(index)
    if name.endswith(".npy"):
        return rng.random((HEIGHT, WIDTH, 2), dtype=np.float32)
    if index == 2:
        return rng.integers(0, 2**16, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    return rng.integers(0, 2**8, (HEIGHT, WIDTH, 3)).astype(np.uint8)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "plate").mkdir()
    rles = [rle_codec.encode_mask(mask_of(*box)) for _, *box in OBJECTS]
    classes = [1 + number for number, *_ in OBJECTS]
    images, rows = [], []
    for index, name in enumerate(NAMES):
        if name.endswith(".npy"):
            np.save(tmp_path / name, picture(index, name))
        else:
            cv2.imwrite(str(tmp_path / name), picture(index, name)[:, :, ::-1])
        images.append({"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH, "site": f"s{index}"})
        rows += annotations_of(rles, classes, image_id=index, first_id=10 * index)
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "debris"}]
    write_coco(tmp_path / "all.json", images=images, annotations=rows, categories=categories)
    return tmp_path / "all.json"


def split(coco: Path, *words: object) -> int:
    return main(["split", str(coco), "--similar", "0", "--output", str(coco.with_name("out")), *map(str, words)])


def test_tiles_put_together_are_the_images_and_their_objects(coco: Path) -> None:
    assert split(coco, "--fractions", 0.4, 0.4, 0.2, "--tile", 32) == 0
    parts = [CocoDataset.load(coco.with_name("out") / f"{name}.json") for name in ("train", "val", "test")]
    sources = [{record.metadata["source"] for record in part.images} for part in parts]
    assert sum(map(len, sources)) == len(set.union(*sources)) == len(NAMES), "all tiles of an image are in one part"
    found = {name: np.zeros_like(picture(index, name)) for index, name in enumerate(NAMES)}
    masks = {name: np.zeros((len(OBJECTS), HEIGHT, WIDTH), bool) for name in NAMES}
    ignored = dict.fromkeys(NAMES, 0)
    for part in parts:
        assert part.class_names == ["cell", "debris"]
        for index, record in enumerate(part.images):
            name, (x, y) = record.metadata["source"], record.metadata["tile"]
            assert (record.height, record.width) == (32, 32)
            assert record.metadata["site"] == f"s{NAMES.index(name)}"
            window = np.s_[y : y + 32, x : x + 32]
            found[name][window] = part.read_image(index)
            rles, classes, crowd = part.annotations(index)
            ignored[name] += int(crowd.sum())
            for rle, class_index in zip(rles, classes.tolist(), strict=True):
                own = rle_codec.decode(rle).astype(bool)
                (number,) = [
                    number
                    for number, (of_class, *box) in enumerate(OBJECTS)
                    if of_class == class_index and (own & mask_of(*box)[window]).any()
                ]
                masks[name][number][window] |= own
    for index, name in enumerate(NAMES):
        assert np.array_equal(found[name], picture(index, name)), name
        assert all(np.array_equal(masks[name][number], mask_of(*box)) for number, (_, *box) in enumerate(OBJECTS))
    assert ignored == dict.fromkeys(NAMES, 1), "2 of the 34 columns of the last object are too little to be told by"


def test_folds_have_all_tiles_of_an_image_and_tiles_may_overlap(coco: Path) -> None:
    assert split(coco, "--folds", 2, "--tile", 60, "--overlap", 8) == 0
    tiles = CocoDataset.load(coco.with_name("out") / "folds.json")
    places = {tuple(record.metadata["tile"]) for record in tiles.images}
    assert places == {(0, 0), (36, 0), (0, 4), (36, 4)}
    folds = {(record.metadata["source"], record.metadata["fold"]) for record in tiles.images}
    assert len(folds) == len(NAMES)
    assert {fold for _, fold in folds} == {0, 1}
    number = next(index for index, record in enumerate(tiles.images) if record.metadata["tile"] == [0, 4])
    rles, _, crowd = tiles.annotations(number)
    areas = rle_codec.area(rles).tolist()
    assert dict(zip(areas, crowd.tolist(), strict=True)) == {20 * 20: False, 35 * 10: False, 30 * 2: False}


def test_wrong_tiles_and_tiles_that_are_there_are_refused(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--tile", 8], ["--tile", -1], ["--tile", 40, "--overlap", 21], ["--overlap", 3]):
        assert split(coco, *words) == 2
    assert "--overlap is 3; expected 0 to half of --tile, which is 0" in capsys.readouterr().err
    (coco.with_name("out") / "tiles").mkdir(parents=True)
    assert split(coco, "--tile", 32) == 2
    assert "tiles exists already" in capsys.readouterr().err
