"""Predictors from run folders and weights files, with a small untrained Mask R-CNN."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import detseg
from detseg.config import load_config
from detseg.curation.synthetic import KINDS
from detseg.errors import ConfigError, RunError, WeightsError
from detseg.files.hashing import hash_file
from detseg.images.reading import read_image
from detseg.inference.loading import find_checkpoint
from detseg.inference.predictor import Predictor
from detseg.models.devices import choose_device
from detseg.runs.checkpoint import save_checkpoint


@pytest.fixture
def run(small_run, tmp_path):
    """A copy of the run that a test may change."""
    shutil.copytree(small_run.parent, tmp_path / "small")
    return tmp_path / "small" / "001"


def test_a_run_predicts_and_says_what_it_is(small_run, image_folder):
    predictor = detseg.Predictor.from_run(small_run)
    assert predictor.classes == KINDS
    assert not predictor.model.training
    image = read_image(image_folder / "b.png")
    predictions = predictor(image)
    assert (predictions.height, predictions.width) == image.shape[:2]
    assert all(rle["size"] == [64, 96] for rle in predictions.rles)
    assert predictions.provenance["engine"] == "native"
    assert predictions.provenance["checkpoint_hash"] == hash_file(small_run / "checkpoints" / "best.pth")
    assert len(predictions.provenance["config_hash"]) == 16
    again = predictor(image_folder / "b.png")
    assert again.rles == predictions.rles
    assert np.array_equal(again.scores, predictions.scores)


def test_the_postprocess_of_the_run_is_used_unless_refused(small_run, image_folder):
    image = read_image(image_folder / "a.png")
    raw = Predictor.from_run(small_run, postprocess=False)
    done = Predictor.from_run(small_run)
    assert raw.postprocess is None
    expected = done.postprocess.apply(raw(image))
    assert done(image).rles == expected.rles
    covered = sum(np.array([mask_of(rle) for rle in expected.rles]), np.zeros(image.shape[:2], int))
    assert covered.max(initial=0) <= 1


def mask_of(rle):
    from detseg.structures import rle as rle_codec

    return rle_codec.decode(rle).astype(int)


def test_the_weights_of_a_checkpoint_are_those_that_predict(small_run):
    for name in ("best", "last"):
        path = small_run / "checkpoints" / f"{name}.pth"
        stored = torch.load(path, weights_only=True)["model"]
        for predictor in (
            Predictor.from_run(small_run, checkpoint=name),
            Predictor.from_run(small_run, checkpoint=f"{name}.pth"),
            Predictor.from_checkpoint(path),
            Predictor.from_checkpoint(path, load_config(small_run / "config.yaml")),
        ):
            loaded = predictor.model.state_dict()
            assert loaded.keys() == stored.keys()
            assert all(torch.equal(loaded[key], stored[key]) for key in stored)


def test_averaged_weights_are_used_where_training_averaged(run):
    path = run / "checkpoints" / "last.pth"
    state = torch.load(path, weights_only=True)
    average = {key: tensor + 1 for key, tensor in state["model"].items()}
    save_checkpoint(path, {**state, "ema": {"model": average, "updates": 5}})
    loaded = Predictor.from_run(run, checkpoint="last").model.state_dict()
    assert all(torch.equal(loaded[key], average[key]) for key in average)


def test_before_the_first_evaluation_the_last_checkpoint_is_taken_and_that_is_said(run, caplog):
    (run / "checkpoints" / "best.pth").unlink()
    (run / "postprocess.yaml").unlink()
    predictor = Predictor.from_run(run)
    assert predictor.postprocess is None
    assert predictor.provenance["checkpoint_hash"] == hash_file(run / "checkpoints" / "last.pth")
    assert "last one is used" in caplog.text
    assert "all detections are kept" in caplog.text


def test_the_folder_of_several_runs_gives_the_newest(run, caplog):
    caplog.set_level("INFO", "detseg")
    shutil.copytree(run, run.parent / "010")
    shutil.copytree(run, run.parent / "002")
    Predictor.from_run(run.parent)
    assert "010" in caplog.text


def test_what_is_no_run_is_refused(run, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        Predictor.from_run(tmp_path / "gone")
    with pytest.raises(RunError, match=r"config\.yaml"):
        Predictor.from_run(run / "checkpoints")
    with pytest.raises(RunError, match=r"best\.pth, last\.pth"):
        find_checkpoint(run, "iteration_9.pth")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="none at all"):
        Predictor.from_run(run)


def test_weights_that_cannot_be_used_are_refused(run, tmp_path):
    path = run / "checkpoints" / "best.pth"
    state = torch.load(path, weights_only=True)
    cfg = load_config(run / "config.yaml")
    with pytest.raises(WeightsError, match="gone"):
        Predictor.from_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(WeightsError, match="gone"):
        Predictor.from_checkpoint(tmp_path / "gone.pth", cfg)
    bare = tmp_path / "bare.pth"
    torch.save({"model": state["model"]}, bare)
    with pytest.raises(WeightsError, match="--config"):
        Predictor.from_checkpoint(bare)
    assert Predictor.from_checkpoint(bare, cfg).classes == ("class 1", "class 2", "class 3")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:5000])
    for given in (None, cfg):
        with pytest.raises(WeightsError, match="cut"):
            Predictor.from_checkpoint(cut, given)
    save_checkpoint(cut, {**state, "classes": ["one", "two"]})
    with pytest.raises(WeightsError, match="one, two"):
        Predictor.from_checkpoint(cut)
    missing = {key: tensor for key, tensor in state["model"].items() if "mask_head" not in key}
    save_checkpoint(cut, {**state, "model": missing})
    with pytest.raises(WeightsError, match="mask_head"):
        Predictor.from_checkpoint(cut)


def test_devices_that_are_not_there_are_refused():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("cuda:99", "toaster"):
        with pytest.raises(ConfigError, match=name):
            choose_device(name)


def test_bfloat16_gives_nearly_the_same_boxes(small_run, image_folder):
    exact = Predictor.from_run(small_run, postprocess=False)(image_folder / "a.png")
    half = Predictor.from_run(small_run, postprocess=False, precision="bfloat16")(image_folder / "a.png")
    assert len(half) == len(exact)
    assert abs(half.scores.mean() - exact.scores.mean()) < 0.02
