"""convert_weights: into a safetensors file and back, under Detectron2's names."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from detseg.cli.main import main
from detseg.models.weights.files import read_weights


def zoo_file(path: Path) -> dict[str, np.ndarray]:
    arrays = {"roi_heads.box_head.fc1.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.int64(3)}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=2))
    return arrays


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = zoo_file(tmp_path / "zoo.pkl")
    assert main(["convert_weights", str(tmp_path / "zoo.pkl"), str(tmp_path / "a.safetensors")]) == 0
    assert main(["convert_weights", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pth"), "--names"]) == 0
    content = torch.load(tmp_path / "b.pth", weights_only=True)
    assert content["matching_heuristics"] is False
    assert content["__author__"]
    assert {name: value.tolist() for name, value in content["model"].items()} == {
        name: value.tolist() for name, value in arrays.items()
    }
    assert "fc1.weight  (2, 3)" in capsys.readouterr().out


def test_a_backbone_is_marked_for_detectron2_and_keeps_its_origin(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)}
    torch.save(state, tmp_path / "resnet18.pth")
    assert main(["convert_weights", str(tmp_path / "resnet18.pth"), str(tmp_path / "a.safetensors")]) == 0
    assert read_weights(tmp_path / "a.safetensors").origin == "torchvision"
    assert main(["convert_weights", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pth")]) == 0
    content = torch.load(tmp_path / "b.pth", weights_only=True)
    assert content["matching_heuristics"] is True
    assert sorted(content["model"]) == ["res2.0.conv1.weight", "stem.conv1.weight"]
    assert read_weights(tmp_path / "b.pth").origin == "torchvision"


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo_file(tmp_path / "zoo.pkl")
    assert main(["convert_weights", str(tmp_path / "zoo.pkl"), str(tmp_path / "a.onnx")]) == 2
    (tmp_path / "a.pth").write_bytes(b"kept")
    assert main(["convert_weights", str(tmp_path / "zoo.pkl"), str(tmp_path / "a.pth")]) == 2
    assert (tmp_path / "a.pth").read_bytes() == b"kept"
    assert "--overwrite" in capsys.readouterr().err
    assert main(["convert_weights", str(tmp_path / "zoo.pkl"), str(tmp_path / "a.pth"), "--overwrite"]) == 0
