"""`predict --refine-with`: objects of a Predictions file, or of a model, drawn anew by a small random SAM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sams import save_small_sam

from detseg.cli.main import main
from detseg.coco.predictions_file import PredictionsWriter, read_predictions
from detseg.models.prompted.options import GateOptions, RefineOptions
from detseg.models.prompted.refine import refine as redraw
from detseg.models.prompted.sam import load_sam
from detseg.structures import rle as rle_codec
from detseg.structures.predictions import Predictions

pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images and the predictions of one detector: masks in the first, nothing in the second."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (60, 80), dtype=np.uint8)).save(tmp_path / "images" / name)
    crops = [(np.ones((12, 14), bool), 10, 20), (np.ones((9, 9), bool), 50, 5)]
    boxes = [[10, 20, 24, 32], [50, 5, 59, 14]]
    rles = rle_codec.encode_crops(crops, 60, 80)
    with PredictionsWriter(tmp_path / "p.json", ["grain"]) as writer:
        writer.write(Predictions(1, "a.png", 60, 80, boxes, [0.9, 0.6], [0, 0], rles))
        writer.write(Predictions.empty(2, "b.png", 60, 80))
    save_small_sam(tmp_path)
    return tmp_path


def refine(folder: Path, *words: str) -> int:
    given = ["--images", folder / "images", "--boxes", folder / "p.json", "--refine-with", "sam"]
    given += ["--sam", folder / "sam", "--output", folder / "r.json", "--overwrite"]
    return main(["predict", *map(str, given), *words])


def test_a_predictions_file_is_drawn_anew(folder: Path) -> None:
    keys = ["MODEL.SAM.MIN_QUALITY", "MODEL.SAM.MIN_STABILITY", "MODEL.SAM.MIN_OVERLAP"]
    assert refine(folder, *(word for name in keys for word in (name, "0"))) == 0
    file = read_predictions(folder / "r.json")
    first, second = list(file)
    assert file.info["refined_with"]["sam"] == str(folder / "sam")
    before, _ = list(read_predictions(folder / "p.json"))
    image = np.array(Image.open(folder / "images" / "a.png"))[:, :, None]
    options = RefineOptions(gates=GateOptions(quality=0, stability=0, overlap=0))
    expected = redraw(load_sam(str(folder / "sam")), image, before, options)
    assert first.boxes.tolist() == expected.boxes.tolist()
    assert first.provenance["sam"] == expected.provenance["sam"]
    assert len(second) == 0
    assert refine(folder, "MODEL.SAM.MIN_QUALITY", "1") == 0
    kept, _ = list(read_predictions(folder / "r.json"))
    assert kept.boxes.tolist() == [[10, 20, 24, 32], [50, 5, 59, 14]], "what SAM loses stays as it was"
    assert kept.provenance["sam"] == {"drawn": 0, "kept": 2, "dropped": 0}


def test_an_image_that_the_file_lacks_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(folder / "images" / "c.png")
    assert refine(folder) == 1
    assert "has no such image" in capsys.readouterr().out
    assert len(read_predictions(folder / "r.json")) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score-threshold", "0.5"], "takes the file as it is"),
        (["MODEL.SAM.TILE", "8"], "MODEL.SAM.TILE"),
        (["--refine-with", "nowhere", "--sam", "x"], "--sam belongs to"),
        (["--sam", "nobody/nothing"], "hf download"),
    ],
)
def test_what_cannot_be_is_refused(
    words: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refine(folder, *words) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "r.json").exists()
