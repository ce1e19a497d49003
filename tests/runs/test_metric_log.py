from __future__ import annotations

import json
from pathlib import Path

import pytest

from detseg.engine.progress import LossWindow, describe_losses, format_seconds
from detseg.engine.state import BestScore
from detseg.runs.trackers import EVALUATION, TRAINING, MetricLog, flatten, read_metrics


def fill(path: Path) -> None:
    log = MetricLog(path)
    for iteration in (10, 20, 30):
        log.write(iteration, TRAINING, {"total_loss": iteration / 10})
        log.write(iteration, EVALUATION, {"object_ap": 0.5})
    log.close()


def test_lines_are_json_and_not_finite_numbers_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    log.write(1, TRAINING, {"total_loss": float("nan"), "per_class": {"a": {"ap": float("inf")}}})
    log.close()
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert line == {"iteration": 1, "kind": "training", "total_loss": None, "per_class": {"a": {"ap": None}}}


def test_opening_cuts_what_will_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    fill(path)
    # The checkpoint of iteration 20 was written before its evaluation ended
    MetricLog(path, iteration=20, last_evaluation=10).close()
    assert [(line["iteration"], line["kind"]) for line in read_metrics(path)] == [
        (10, "training"),
        (10, "evaluation"),
        (20, "training"),
    ]


def test_a_line_that_a_crash_cut_off_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    fill(path)
    with open(path, "a") as file:
        file.write('{"iteration": 40, "ki')
    MetricLog(path, iteration=100, last_evaluation=100).close()
    assert [line["iteration"] for line in read_metrics(path)] == [10, 10, 20, 20, 30, 30]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = MetricLog(tmp_path / "m.jsonl", tensorboard=tmp_path / "tensorboard")
    log.write(5, EVALUATION, {"object_ap": 0.25, "per_class": {"cort": {"object_ap": 0.5}}, "name": "text"})
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["evaluation/object_ap", "evaluation/per_class/cort/object_ap"]
    assert events.Scalars("evaluation/object_ap")[0].value == 0.25
    assert events.Scalars("evaluation/object_ap")[0].step == 5


def test_flatten_leaves_texts_and_truth_values_out() -> None:
    assert flatten({"a": 1, "b": {"c": 2.5, "d": None, "e": True}}) == {"a": 1.0, "b/c": 2.5}


def test_window_means_and_state() -> None:
    window = LossWindow()
    window.add({"a": 1.0})
    window.add({"a": 3.0})
    copy = LossWindow()
    copy.load_state_dict(window.state_dict())
    assert copy.means() == {"a": 2.0}
    copy.clear()
    assert copy.count == 0


def test_texts_for_people() -> None:
    assert describe_losses(1.5, {"loss_cls": 1.0, "loss_mask": 0.5}) == "loss 1.500 (cls 1.000, mask 0.500)"
    assert format_seconds(3723.4) == "1:02:03"


def test_best_score_counts_what_did_not_improve() -> None:
    best = BestScore()
    assert [best.update(i, value) for i, value in ((1, 0.1), (2, 0.3), (3, 0.3), (4, None))] == [
        True,
        True,
        False,
        False,
    ]
    assert (best.value, best.iteration, best.last_evaluation, best.without_improvement) == (0.3, 2, 4, 2)
    assert best.exhausted(2)
    assert not best.exhausted(3)
    assert not best.exhausted(0)
    copy = BestScore()
    copy.load_state_dict(best.state_dict())
    assert copy == best


def test_an_undefined_first_score_is_kept_until_there_is_one() -> None:
    best = BestScore()
    assert best.update(1, None)
    assert best.update(2, 0.0)
