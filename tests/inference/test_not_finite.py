"""Weights and outputs that are not finite are an error, never an image without objects; strange images are named."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import tifffile
import torch

from detseg.cli.main import run_command
from detseg.coco.predictions_file import read_predictions
from detseg.errors import WeightsError
from detseg.inference.predictor import Predictor
from detseg.runs.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the run that a test may change."""
    shutil.copytree(small_run, tmp_path / "001")
    return tmp_path / "001"


def change(run, name: str, value: float) -> None:
    path = run / "checkpoints" / "best.pth"
    state = load_checkpoint(path)
    state["model"][name] = torch.full_like(state["model"][name], value)
    save_checkpoint(path, state)


def test_weights_that_are_not_finite_are_named(run, image_folder, tmp_path, capsys):
    change(run, "roi_heads.box_predictor.cls_score.weight", float("nan"))
    with pytest.raises(WeightsError, match=r"1 of \d+ weights are not finite(.|\n)*cls_score.weight"):
        Predictor.from_run(run)
    output = tmp_path / "found.json"
    words = ["--run", str(run), "--images", str(image_folder), "--output", str(output)]
    assert run_command("predict", words, prog="predict") == 2
    assert "cls_score.weight" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("backbone.bottom_up.stem.conv1.weight", "feature maps"),
        ("proposal_generator.rpn_head.conv.weight", "proposals"),
        ("roi_heads.box_head.fc1.weight", "class scores and boxes"),
        ("roi_heads.mask_head.mask_fcn1.weight", "mask probabilities"),
    ],
)
def test_outputs_that_are_not_finite_are_named(run, image_folder, name, named):
    change(run, name, -3e38 if "mask_fcn" not in name else 3e38)  # finite, but no sum of it is
    state = load_checkpoint(run / "checkpoints" / "best.pth")
    bias = name.replace("weight", "bias")
    if bias in state["model"]:
        change(run, bias, 3e38)
    with pytest.raises(WeightsError, match=f"{named}.* not finite"):
        Predictor.from_run(run)(image_folder / "a.png")


def test_images_of_another_range_are_warned_of(run, caplog):
    image = np.random.default_rng(0).integers(0, 65535, (64, 64), dtype=np.uint16)
    predictor = Predictor.from_run(run)
    with caplog.at_level(logging.WARNING):
        predictor((image // 256).astype(np.uint8))
        assert caplog.messages == []
        predictor(image)
        assert "far above those of MODEL.PIXEL_MEAN" in caplog.text  # the checkpoint has no range of its own
        caplog.clear()
        state = load_checkpoint(run / "checkpoints" / "best.pth")
        known = {"low": [0.0] * 3, "dark": [40000.0] * 3, "bright": [60000.0] * 3}
        save_checkpoint(run / "checkpoints" / "best.pth", {**state, "intensities": known})
        predictor = Predictor.from_run(run)
        predictor(image)
        assert caplog.messages == []
        predictor.tiling = predictor.tiling.__class__(when="always", tile=32, overlap=8)
        predictor((image // 256).astype(np.uint8))
    assert "far below those of the images that the model was trained with (0 to 60000)" in caplog.text
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("options", [["--batch-size", "3"], ["--tile", "32"], ["--processes", "2", "--tile", "32"]])
def test_an_image_whose_output_is_not_finite_is_listed_and_the_others_predicted(
    run, image_folder, tmp_path, capsys, options
):
    change(run, "backbone.bottom_up.stem.conv1.weight", 1)  # sums of what is near the largest number overflow
    folder, output = tmp_path / "images", tmp_path / "found.json"
    shutil.copytree(image_folder, folder)
    tifffile.imwrite(folder / "huge.tif", np.full((64, 96, 3), 3e38, np.float32), photometric="rgb")
    words = ["--run", str(run), "--images", str(folder), "--output", str(output), *options]
    assert run_command("predict", words, prog="predict") == 1
    said = capsys.readouterr().out
    assert "1 image could not be predicted" in said
    assert "huge.tif: the model's" in said
    assert [image.file_name for image in read_predictions(output)] == ["a.png", "b.png", "c.png"]


def test_outputs_that_are_not_finite_for_any_image_are_an_error(run, image_folder, tmp_path, capsys):
    change(run, "backbone.bottom_up.stem.conv1.weight", -3e38)
    output = tmp_path / "found.json"
    words = ["--run", str(run), "--images", str(image_folder), "--output", str(output), "--batch-size", "2"]
    assert run_command("predict", words, prog="predict") == 2
    said = capsys.readouterr().err
    assert "none of the 3 images could be predicted" in said
    assert "a.png, b.png, c.png (3 in all): the model's feature maps" in said
    assert not output.exists()
