"""The loop on a model of its own: what it computes, when it saves, and how it stops."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_segmenter import TinySegmenter, disk_batches, disk_sample

from detseg.config import get_default_config
from detseg.engine.plan import TrainingPlan
from detseg.engine.progress import MEASURED, Progress
from detseg.engine.state import TrainingState, build_state
from detseg.engine.train import run_iterations
from detseg.engine.training import Training
from detseg.engines.choice import EngineChoice
from detseg.errors import RunError, WeightsError
from detseg.files.run_files import read_metrics
from detseg.runs.checkpoint import load_checkpoint
from detseg.runs.interrupt import StopRequest, TrainingInterrupted
from detseg.runs.run_folder import RunFolder
from detseg.runs.session import Session
from detseg.runs.trackers import JsonLines, Trackers


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path, new=True) as folder:
        yield folder


def config(**solver: object):
    cfg = get_default_config()
    for key, value in {
        "MAX_ITER": 8,
        "BASE_LR": 0.1,
        "WARMUP_ITERS": 0,
        "STEPS": [],
        "IMS_PER_BATCH": 2,
        **solver,
    }.items():
        cfg.set(key if "." in key and not key.startswith("EMA") else f"SOLVER.{key}", value)
    cfg.TEST.BEST_METRIC = "object_ap"
    return cfg


def new_state(cfg, model: TinySegmenter) -> TrainingState:
    session = Session(cfg, EngineChoice("native", ""), RunFolder(Path(), locked=False))
    return build_state(session, TrainingPlan.from_config(cfg), model, ["disk"])


def start(cfg) -> TrainingState:
    torch.manual_seed(0)
    return new_state(cfg, TinySegmenter())


def go(state: TrainingState, cfg, run: RunFolder, batches=None, evaluate=None, stop: StopRequest | None = None) -> None:
    plan = TrainingPlan.from_config(cfg)
    session = Session(
        cfg, EngineChoice("native", ""), run, trackers=Trackers([JsonLines()]), stop=stop or StopRequest()
    )
    session.iteration, session.last_evaluation = state.iteration, state.best.last_evaluation
    session.trackers.start(session)
    options = {"log_period": 3, "images": plan.images_per_iteration, "device": torch.device("cpu")}
    progress = Progress(session, state.window, max_iter=plan.max_iter, **options)
    with progress:
        run_iterations(Training(session, plan, state, batches or disk_batches(state.position), progress, evaluate))
    session.trackers.finish({}, "finished")


def assert_same_weights(first: TrainingState, second: TrainingState) -> None:
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_training_learns_and_logs_means(run: RunFolder) -> None:
    cfg = config(MAX_ITER=60)
    state = start(cfg)
    go(state, cfg, run)
    lines = read_metrics(run.metrics)
    assert [line["iteration"] for line in lines] == list(range(3, 61, 3))
    assert lines[-1]["total_loss"] < 0.6 * lines[0]["total_loss"]
    for line in lines:
        assert line["total_loss"] == pytest.approx(line["loss_mask"] + line["loss_size"], rel=1e-6)
        assert {"lr", "gradient_norm", *MEASURED} <= line.keys()


def test_the_first_iterations_are_shown_and_the_metrics_stay_regular(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(MAX_ITER=14)
    with caplog.at_level("INFO"):
        go(start(cfg), cfg, run)
    lines = [message for message in caplog.messages if message.startswith("iteration ")]
    assert [int(re.match(r"iteration (\d+)/14", line)[1]) for line in lines] == [1, 2, 3, 5, 6, 9, 10, 12, 14]
    assert re.search(r"ETA 0:00:\d\d of about 0:00:\d\d without evaluations$", lines[0])
    assert "of about" not in lines[-1]
    assert [line["iteration"] for line in read_metrics(run.metrics)] == [3, 6, 9, 12, 14]


def test_accumulated_batches_make_the_gradient_of_their_mean(run: RunFolder) -> None:
    class Linear(TinySegmenter):  # no BatchNorm and dropout: they see batches, not samples
        def logits(self, images):
            batch = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]).float() / 255
            return self.last(self.first(batch))[:, 0]

    weights = []
    for batch, accumulate in ((4, 1), (2, 2)):
        cfg = config(MAX_ITER=3, IMS_PER_BATCH=batch, ACCUMULATE=accumulate)
        torch.manual_seed(0)
        state = new_state(cfg, Linear())
        go(state, cfg, run, disk_batches(0, batch))
        assert state.position == 12
        weights.append(state.model.first.weight.detach())
        run.metrics.unlink()
    assert torch.allclose(*weights, atol=1e-6)


def test_the_learning_rate_of_an_iteration_is_the_schedules(run: RunFolder) -> None:
    cfg = config(MAX_ITER=4, STEPS=[2], GAMMA=0.1)
    state = start(cfg)
    go(state, cfg, run)
    means = [line["lr"] for line in read_metrics(run.metrics)]  # lines at 3 and 4 iterations
    assert means == pytest.approx([(0.1 + 0.1 + 0.01) / 3, 0.01])


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_resuming_from_memory_is_bit_identical(run: RunFolder, optimizer: str, ema: bool) -> None:
    cfg = config(MAX_ITER=7, OPTIMIZER=optimizer, **{"EMA.ENABLED": ema, "CHECKPOINT_PERIOD": 4, "CHECKPOINT_KEEP": 9})
    whole = start(cfg)
    go(whole, cfg, run)
    lines = [{k: v for k, v in line.items() if k not in MEASURED} for line in read_metrics(run.metrics)]

    torch.manual_seed(99)  # other initial weights and another generator state: all must come from the file
    resumed = new_state(cfg, TinySegmenter())
    saved = resumed.restore(run.checkpoints / "iteration_0000004.pth")
    assert resumed.iteration == 4
    assert resumed.position == saved["position"] == 8
    torch.set_rng_state(saved["rng"]["torch"])
    go(resumed, cfg, run)
    assert_same_weights(whole, resumed)
    if ema:
        for name, tensor in whole.average.average.items():
            assert torch.equal(tensor, resumed.average.average[name]), name
    again = [{k: v for k, v in line.items() if k not in MEASURED} for line in read_metrics(run.metrics)]
    assert again == lines


def evaluation(values: list[float | None]):
    """Scores in turn, drawing random numbers as a careless evaluation may."""
    remaining = iter(values)

    def evaluate(model: torch.nn.Module, iteration: int) -> dict[str, float | None]:
        assert not model.training
        torch.rand(3)
        return {"object_ap": next(remaining)}

    return evaluate


def test_evaluation_does_not_change_the_training(run: RunFolder) -> None:
    plain, watched = config(MAX_ITER=6), config(MAX_ITER=6, **{"TEST.EVAL_PERIOD": 2, "EMA.ENABLED": True})
    first = start(plain)
    go(first, plain, run)
    run.metrics.unlink()
    second = start(watched)
    go(second, watched, run, evaluate=evaluation([0.1, 0.2, 0.3]))
    assert_same_weights(first, second)


def test_best_checkpoint_has_the_weights_of_the_best_evaluation(run: RunFolder) -> None:
    cfg = config(MAX_ITER=7, **{"TEST.EVAL_PERIOD": 2})
    state = start(cfg)
    go(state, cfg, run, evaluate=evaluation([0.2, 0.5, None, 0.4]))  # after 2, 4, 6 and the last, 7
    best = load_checkpoint(run.best)
    assert best["iteration"] == 4
    assert best["metrics"] == {"object_ap": 0.5}
    assert best["classes"] == ["disk"]
    assert best["config"]["SOLVER.MAX_ITER"] == 7
    assert "optimizer" not in best
    assert load_checkpoint(run.last, for_training=True)["progress"]["best"]["iteration"] == 4
    evaluations = [line for line in read_metrics(run.metrics) if line["kind"] == "evaluation"]
    assert [(line["iteration"], line["object_ap"]) for line in evaluations] == [(2, 0.2), (4, 0.5), (6, None), (7, 0.4)]


def test_with_averaging_the_averaged_weights_are_evaluated_and_kept_as_best(run: RunFolder) -> None:
    cfg = config(MAX_ITER=4, **{"TEST.EVAL_PERIOD": 4, "EMA.ENABLED": True})
    state = start(cfg)
    seen = {}

    def evaluate(model: torch.nn.Module, iteration: int) -> dict[str, float]:
        seen.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"object_ap": 0.5}

    go(state, cfg, run, evaluate=evaluate)
    best, last = load_checkpoint(run.best)["model"], load_checkpoint(run.last)["model"]
    for name, tensor in best.items():
        assert torch.equal(tensor, seen[name]), name
    assert not torch.equal(best["first.weight"], last["first.weight"])
    assert torch.equal(last["first.weight"], state.model.first.weight)


def test_early_stop_after_evaluations_without_improvement(run: RunFolder) -> None:
    cfg = config(MAX_ITER=100, **{"TEST.EVAL_PERIOD": 2, "TEST.EARLY_STOP_PATIENCE": 2})
    state = start(cfg)
    go(state, cfg, run, evaluate=evaluation([0.2, 0.5, 0.5, 0.4]))
    assert state.iteration == 8
    resumed = start(cfg)
    resumed.restore(run.last)
    go(resumed, cfg, run, evaluate=evaluation([]))  # stopped for good: no iteration, no evaluation
    assert resumed.iteration == 8


def test_an_evaluation_that_fails_is_repeated_after_resuming(run: RunFolder) -> None:
    cfg = config(MAX_ITER=4, **{"TEST.EVAL_PERIOD": 2})
    state = start(cfg)
    with pytest.raises(StopIteration):
        go(state, cfg, run, evaluate=evaluation([]))
    resumed = start(cfg)
    resumed.restore(run.last)
    assert resumed.iteration == 2
    go(resumed, cfg, run, evaluate=evaluation([0.1, 0.2]))
    assert resumed.best.value == 0.2


def test_a_signal_saves_and_stops_between_iterations(run: RunFolder) -> None:
    cfg = config(MAX_ITER=50)
    state = start(cfg)

    def batches():
        for number, samples in enumerate(disk_batches()):
            if number == 3:
                signal.raise_signal(signal.SIGINT)
            yield samples

    with StopRequest() as stop, pytest.raises(TrainingInterrupted) as caught:
        go(state, cfg, run, batches(), stop=stop)
    assert caught.value.signal == signal.SIGINT
    assert load_checkpoint(run.last, for_training=True)["iteration"] == 4


def test_a_second_signal_stops_at_once() -> None:
    def press_twice(stop: StopRequest) -> None:
        signal.raise_signal(signal.SIGINT)
        while stop.signal is None:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGINT)  # the same one: `timeout` sends it to its command and to the group
        time.sleep(1.1)
        assert stop.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)
        time.sleep(10)

    # Where the tests were started in the background of a shell, the interrupt is ignored from the beginning.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
            press_twice(stop)
    finally:
        signal.signal(signal.SIGINT, before)


def poisoned() -> Iterator[list]:
    for number, samples in enumerate(disk_batches()):
        if number == 2:
            image = samples[1].image.astype(np.float32)
            image[3, 4] = np.nan
            samples[1].image = image
        yield samples


def test_a_loss_that_is_not_finite_stops_with_names_and_a_dump(run: RunFolder) -> None:
    cfg = config(MAX_ITER=10)
    state = start(cfg)
    with pytest.raises(RunError, match=r"loss is not finite in iteration 3 .*4\.png, 5\.png"):
        go(state, cfg, run, poisoned())
    dump = run.non_finite / "iteration_0000003"
    report = json.loads((dump / "report.json").read_text())
    assert report["not_finite"] == ["loss_mask", "loss_size"]
    assert report["images"][1]["file_name"] == "5.png"
    with np.load(dump / "sample_1.npz") as arrays:
        assert np.isnan(arrays["image"][3, 4]).all()
        assert arrays["layers"].shape == (1, 24, 24)
        assert arrays["classes"].tolist() == [0]
    model = TinySegmenter()
    model.load_state_dict(load_checkpoint(dump / "model.pth")["model"])


def test_a_gradient_that_is_not_finite_stops_too(run: RunFolder) -> None:
    class Steep(TinySegmenter):
        def forward(self, samples):
            losses = super().forward(samples)
            zero = self.last.weight.sum() * 0.0
            return {**losses, "loss_steep": torch.sqrt(zero.abs())}  # value 0, slope infinite times 0

    cfg = config(MAX_ITER=10)
    state = new_state(cfg, Steep())
    with pytest.raises(RunError, match=r"gradient is not finite in iteration 1 .*0\.png, 1\.png"):
        go(state, cfg, run)


def test_resuming_another_model_is_refused(run: RunFolder) -> None:
    cfg = config(MAX_ITER=2)
    go(start(cfg), cfg, run)

    class Wider(TinySegmenter):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Linear(1, 1)

    with pytest.raises(WeightsError, match=r"last\.pth belongs to another model"):
        new_state(cfg, Wider()).restore(run.last)


def test_resuming_follows_the_present_configuration(run: RunFolder) -> None:
    cfg = config(MAX_ITER=2)
    go(start(cfg), cfg, run)
    slower = config(MAX_ITER=2, BASE_LR=0.01)
    state = start(slower)
    state.restore(run.last)
    assert {group["initial_lr"] for group in state.optimizer.param_groups} == {0.01}


def test_bfloat16_trains(run: RunFolder) -> None:
    cfg = config(MAX_ITER=3, **{"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16"})
    state = start(cfg)
    before = state.model.first.weight.detach().clone()
    go(state, cfg, run)
    assert not torch.equal(before, state.model.first.weight)


def test_disk_samples_depend_on_their_position_alone() -> None:
    assert np.array_equal(disk_sample(3).image, disk_sample(3).image)
