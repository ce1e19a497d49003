"""Detectron2's trainer around detseg's data and files, beside the native loop."""

from __future__ import annotations

import json
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2_cases import require_detectron2, training_config, write_dataset

require_detectron2()

from random_cases import steps_beyond, without_onednn

from detseg import Predictor
from detseg.cli.main import run_command
from detseg.coco.predictions_file import read_predictions
from detseg.config import Config, dump_config, load_config
from detseg.engine.detectron2.trainer import IterationHook
from detseg.engine.evaluate_only import evaluate_only
from detseg.engine.progress import MEASURED
from detseg.engine.train import train
from detseg.engines.build import build_model
from detseg.errors import RunError, WeightsError
from detseg.files.run_files import read_metrics
from detseg.runs.checkpoint import load_checkpoint, save_checkpoint
from detseg.runs.interrupt import TrainingInterrupted
from detseg.runs.run_folder import open_run
from detseg.runs.wandb_file import read_history, run_files


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Random weights for both engines to start from."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    model = build_model(training_config(data, folder, "detectron2"))
    path = folder / "start.pth"
    save_checkpoint(path, {"model": dict(model.state_dict())})
    return path


def run_training(cfg: Config, *, resume: bool = False) -> dict[str, Any]:
    torch.set_num_threads(1)
    with open_run(cfg, resume=resume) as run:
        return train(cfg, run, resume=resume)


def training_lines(folder: Path) -> list[dict[str, float]]:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "training"]
    return [{name: value for name, value in line.items() if name not in (*MEASURED, "kind")} for line in lines]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, data: Path, weights: Path) -> dict[str, Path]:
    """Ten steps of clipped SGD in each engine, from the same weights."""
    folders = {}
    for engine in ("detectron2", "native"):
        folders[engine] = tmp_path_factory.mktemp("runs") / engine
        run_training(training_config(data, folders[engine], engine, MODEL__WEIGHTS=str(weights)))
    return folders


def test_ten_steps_have_the_same_losses(both: dict[str, Path], data: Path, weights: Path, tmp_path: Path):
    """How far they may be apart follows from Detectron2 itself, on this machine, with other convolutions."""
    with without_onednn():
        run_training(training_config(data, tmp_path / "run", "detectron2", MODEL__WEIGHTS=str(weights)))
    expected, found, itself = map(training_lines, (both["detectron2"], both["native"], tmp_path / "run"))
    assert len(expected) == len(found) == len(itself) == 10
    assert all(ours.keys() == theirs.keys() for ours, theirs in zip(found, expected, strict=True))
    norms = [line["gradient_norm"] for line in expected]
    assert [line["gradient_norm"] for line in found] == pytest.approx(norms, rel=1e-3)
    assert not steps_beyond(relative_losses(found, expected), relative_losses(itself, expected))


def relative_losses(found: list[dict[str, float]], expected: list[dict[str, float]]) -> list[float]:
    """The largest relative difference of a loss, by step."""
    names = [name for name in expected[0] if "loss" in name]
    assert names
    return [max(abs(a[n] - b[n]) / max(abs(b[n]), 1e-2) for n in names) for a, b in zip(found, expected, strict=True)]


def test_both_show_the_first_iterations_at_once(both: dict[str, Path]):
    for folder in both.values():
        log = (folder / "log.txt").read_text()
        first = [line for line in log.splitlines() if "without evaluations" in line]
        assert ["iteration 1/10 " in first[0], len(first)] == [True, 4], log


def test_both_are_runs_of_wandb(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    keys = {"TRACKING__BACKENDS": ["wandb"], "SOLVER__MAX_ITER": 4, "SOLVER__STEPS": [], "TEST__EVAL_PERIOD": 2}
    names = []
    for engine in ("detectron2", "native"):
        folder = tmp_path / engine
        run_training(training_config(data, folder, engine, SOLVER__BACKBONE_MULTIPLIER=0.5, **keys))
        (file,) = run_files(folder, record(folder)["wandb"]["id"])
        rows = read_history(file)
        assert [row["_step"] for row in rows] == [1, 2, 3, 4], engine
        for row in rows:
            assert row["training/lr/backbone"] == pytest.approx(row["training/lr"] / 2), engine
        names.append([{name for name in row if name.startswith("training/")} for row in rows])
        assert "evaluation/object_ap" in rows[1]
    assert names[0] == names[1]
    assert {"training/memory_gb", "training/images_per_second"} <= names[0][1]


def test_nobody_can_tell_the_files_apart_but_by_the_line_that_says_so(both: dict[str, Path]):
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "tfevents" not in path.name)
        for folder in both.values()
    ]
    assert names[0] == names[1]
    configs = [load_config(folder / "config.yaml").flatten() for folder in both.values()]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"MODEL.ENGINE", "OUTPUT_DIR"}
    last = [load_checkpoint(folder / "checkpoints" / "last.pth", for_training=True) for folder in both.values()]
    assert last[0].keys() == last[1].keys()
    assert last[0]["model"].keys() == last[1]["model"].keys()
    assert [one["engine"] for one in last] == [record(folder)["engine"] for folder in both.values()] == list(both)


def test_a_checkpoint_of_one_engine_scores_the_same_in_the_other(both: dict[str, Path], tmp_path: Path):
    for engine, other in (("detectron2", "native"), ("native", "detectron2")):
        cfg = load_config(both[engine] / "config.yaml", ["MODEL.ENGINE", other])
        folder, scores = evaluate_only(cfg, ["MODEL.ENGINE", other])
        own = json.loads((both[engine] / "final_metrics.json").read_text())
        assert scores["predictions"] > 0
        assert {k: v for k, v in scores.items() if isinstance(v, float)} == pytest.approx(
            {k: v for k, v in own.items() if isinstance(v, float)}, abs=1e-5
        )
        assert folder.parent.name == "evaluations"


def test_a_run_is_predicted_by_its_engine(both: dict[str, Path], data: Path):
    for engine, folder in both.items():
        predictions = Predictor.from_run(folder, postprocess=False)(data.with_name("0.png"))
        assert predictions.provenance["engine"] == engine
        assert predictions.provenance["engine_reason"] == f"the model was trained with {engine}"
        from_file = Predictor.from_checkpoint(folder / "checkpoints" / "best.pth")(data.with_name("0.png"))
        assert from_file.provenance["engine"] == engine
        np.testing.assert_array_equal(from_file.boxes, predictions.boxes)


def test_auto_takes_detectron2_and_keeps_to_it(data: Path, tmp_path: Path):
    cfg = training_config(data, tmp_path / "run", "auto", SOLVER__MAX_ITER=1)
    run_training(cfg)
    assert record(tmp_path / "run")["engine"] == "detectron2"
    assert "auto" in record(tmp_path / "run")["engine_reason"]
    assert record(tmp_path / "run")["environment"]["detectron2"]
    assert load_config(tmp_path / "run" / "config.yaml").MODEL.ENGINE == "detectron2"
    other = cfg.clone()
    other.set("MODEL.ENGINE", "native")
    with pytest.raises(RunError, match="started with the engine detectron2"):
        run_training(other, resume=True)


def test_an_interrupted_run_goes_on_bit_for_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With everything that has a state: averaged weights, AdamW, evaluations, a window of losses."""
    changes = {
        "SOLVER__OPTIMIZER": "AdamW",
        "SOLVER__BASE_LR": 0.001,
        "SOLVER__EMA__ENABLED": True,
        "SOLVER__LOG_PERIOD": 3,
        "SOLVER__ACCUMULATE": 2,
        "SOLVER__MAX_ITER": 6,
        "SOLVER__STEPS": [4],
        "SOLVER__CHECKPOINT_PERIOD": 2,
        "TEST__EVAL_PERIOD": 3,
        "MODEL__RPN__BATCH_SIZE_PER_IMAGE": 16,
        "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 16,
    }
    run_training(training_config(data, tmp_path / "whole", "detectron2", **changes))
    after_step = IterationHook.after_step

    def with_signal(hook: IterationHook) -> None:
        if hook.trainer.training.state.iteration == 3:
            hook.trainer.training.session.stop.signal = signal.SIGTERM
        after_step(hook)

    cfg = training_config(data, tmp_path / "parts", "detectron2", **changes)
    monkeypatch.setattr(IterationHook, "after_step", with_signal)
    with pytest.raises(TrainingInterrupted, match="after iteration 4"):
        run_training(cfg)
    assert record(tmp_path / "parts")["status"] == "interrupted"
    monkeypatch.setattr(IterationHook, "after_step", after_step)
    run_training(cfg, resume=True)
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoints" / "last.pth") for name in ("whole", "parts"))
    for one, other in ((whole["model"], parts["model"]), (whole["ema"]["model"], parts["ema"]["model"])):
        assert not [name for name in one if not torch.equal(one[name], other[name])]
    assert training_lines(tmp_path / "whole") == training_lines(tmp_path / "parts")


@pytest.mark.parametrize(
    "changes",
    [
        {"SOLVER__OPTIMIZER": "AdamW", "SOLVER__BASE_LR": 0.001, "SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR"},
        {"SOLVER__ACCUMULATE": 2, "SOLVER__EMA__ENABLED": True, "SOLVER__CLIP_GRADIENTS__CLIP_TYPE": "full_model"},
        {
            "MODEL__FREEZE": ["backbone.bottom_up.stem.*"],
            "SOLVER__BACKBONE_MULTIPLIER": 0.1,
            "SOLVER__BIAS_LR_FACTOR": 2.0,
        },
    ],
    ids=["AdamW", "accumulated and averaged", "frozen"],
)
def test_native_keys_do_in_detectron2_what_they_do_in_native(
    changes: dict[str, Any], data: Path, weights: Path, tmp_path: Path
):
    ends = {}
    for engine in ("detectron2", "native"):
        cfg = training_config(
            data, tmp_path / engine, engine, SOLVER__MAX_ITER=3, MODEL__WEIGHTS=str(weights), **changes
        )
        run_training(cfg)
        ends[engine] = load_checkpoint(tmp_path / engine / "checkpoints" / "last.pth")
    lines = [training_lines(tmp_path / engine) for engine in ends]
    for theirs, ours in zip(*lines, strict=True):
        assert ours.pop("gradient_norm") == pytest.approx(theirs.pop("gradient_norm"), rel=1e-3)
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    if ends["native"]["ema"]:
        theirs, ours = (ends[engine]["ema"]["model"] for engine in ends)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=2e-5)


def test_new_heads_learn_first(data: Path, weights: Path, tmp_path: Path):
    start = load_checkpoint(weights)["model"]
    without = {name: value for name, value in start.items() if "mask_head" not in name}
    save_checkpoint(tmp_path / "partial.pth", {"model": without})
    cfg = training_config(
        data,
        tmp_path / "run",
        "detectron2",
        SOLVER__MAX_ITER=2,
        SOLVER__HEAD_WARMUP_ITERS=5,
        MODEL__WEIGHTS=str(tmp_path / "partial.pth"),
    )
    run_training(cfg)
    end = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pth")["model"]
    trained = [name for name in end if name.endswith((".weight", ".bias")) and not torch.equal(end[name], start[name])]
    assert {name.split(".")[1] for name in trained} == {"mask_head"}


def test_the_end_of_patience(data: Path, tmp_path: Path):
    changes = {"TEST__EVAL_PERIOD": 1, "TEST__EARLY_STOP_PATIENCE": 2, "SOLVER__BASE_LR": 1e-12}
    run_training(training_config(data, tmp_path, "detectron2", **changes))
    assert training_lines(tmp_path)[-1]["iteration"] < 10


def test_statistics_of_batchnorm_are_measured_anew(data: Path, tmp_path: Path):
    changes = {"MODEL__RESNETS__NORM": "BN", "SOLVER__MAX_ITER": 1, "SOLVER__BASE_LR": 1e-12}
    name = "backbone.bottom_up.stem.conv1.norm.running_mean"
    means = []
    for precise in (False, True):
        folder = tmp_path / str(precise)
        changes |= {"TEST__PRECISE_BN__ENABLED": precise, "TEST__PRECISE_BN__NUM_ITER": 4}
        run_training(training_config(data, folder, "detectron2", **changes))
        means.append(load_checkpoint(folder / "checkpoints" / "last.pth")["model"][name])
    assert not torch.allclose(means[0], means[1], rtol=0.5), "a moving average after one step is still near its start"


def test_pictures_of_detectron2_go_to_tensorboard(data: Path, tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard")
    run_training(training_config(data, tmp_path, "detectron2", SOLVER__MAX_ITER=2, VIS_PERIOD=1))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert any("Predicted proposals" in name for name in events.Tags()["images"])
    assert "training/total_loss" in events.Tags()["scalars"]


def test_divergence_names_the_images(data: Path, tmp_path: Path):
    cfg = training_config(data, tmp_path, "detectron2", SOLVER__BASE_LR=1e30, SOLVER__CLIP_GRADIENTS__ENABLED=False)
    with pytest.raises(RunError, match=r"not finite in iteration \d+ .*Images of this batch: \d\.png, \d\.png"):
        run_training(cfg)
    (dump,) = (tmp_path / "non_finite").iterdir()
    assert (dump / "sample_0.npz").is_file()
    assert record(tmp_path)["status"] == "failed"


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("it_ran"),))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_a_dangerous_file_is_refused(suffix: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": RunsCode()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": RunsCode()}))
    cfg = training_config(data, tmp_path / "run", "detectron2", MODEL__WEIGHTS=str(path))
    with pytest.raises(WeightsError):
        run_training(cfg)
    assert not (tmp_path / "it_ran").exists()


def test_folds(tmp_path: Path):
    """Each fold is a training by Detectron2's trainer in one process, and the next one begins afresh."""
    data = write_dataset(tmp_path / "data")
    content = json.loads(data.read_text())
    for image in content["images"]:
        image["fold"] = image["id"] % 2
    data.write_text(json.dumps(content))
    changes = {"MODEL__RESNETS__NORM": "BN", "SOLVER__MAX_ITER": 1, "SOLVER__STEPS": [], "DATASETS__TEST": []}
    config = tmp_path / "disks.yaml"
    config.write_text(dump_config(training_config(data, tmp_path / "cv", "detectron2", **changes)))
    words = ["--num-threads", "1", "--config", str(config), "--fold", "all"]
    assert run_command("train_net", words, prog="train_net") == 0
    joined = list(read_predictions(tmp_path / "cv" / "oof.json.gz"))
    assert [one.provenance["fold"] for one in joined] == [image["fold"] for image in content["images"]]
    assert {one.provenance["engine"] for one in joined} == {"detectron2"}
    for fold in (0, 1):
        assert record(tmp_path / "cv" / f"fold{fold}")["engine"] == "detectron2"
        assert [line["iteration"] for line in training_lines(tmp_path / "cv" / f"fold{fold}")] == [1]
    before = record(tmp_path / "cv" / "fold1")
    assert run_command("train_net", [*words, "--resume"], prog="train_net") == 0
    assert record(tmp_path / "cv" / "fold1") == before


def test_boxes_alone_by_retinanet(data: Path, tmp_path: Path):
    """An architecture that is no R-CNN: any that Detectron2 knows trains and predicts."""
    changes = {
        "MODEL__META_ARCHITECTURE": "RetinaNet",
        "MODEL__BACKBONE__NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
        "MODEL__RESNETS__OUT_FEATURES": ["res3", "res4", "res5"],
        "MODEL__RETINANET__NUM_CLASSES": 2,
        "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
        "MODEL__MASK_ON": False,
        "SOLVER__MAX_ITER": 2,
    }
    run_training(training_config(data, tmp_path, "auto", **changes))
    predictions = Predictor.from_run(tmp_path, postprocess=False)(data.with_name("0.png"))
    assert predictions.rles is None
    assert len(predictions) > 0
