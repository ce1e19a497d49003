from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detseg.config import get_default_config
from detseg.engines.choice import EngineChoice
from detseg.files.run_files import read_metrics
from detseg.runs.run_folder import RunFolder
from detseg.runs.session import Session
from detseg.runs.tracker import EVALUATION, TRAINING, Tracker, flatten
from detseg.runs.trackers import JsonLines, TensorBoard, Trackers


def session(folder: Path, iteration: int = 0, last_evaluation: int = 0) -> Session:
    run = RunFolder(folder, locked=False)
    engine = EngineChoice("native", "")
    return Session(get_default_config(), engine, run, iteration=iteration, last_evaluation=last_evaluation)


def started(tracker: Tracker, *arguments: object) -> Tracker:
    tracker.start(session(*arguments))
    return tracker


def fill(folder: Path) -> Path:
    lines = started(JsonLines(), folder)
    for iteration in (10, 20, 30):
        lines.log(iteration, TRAINING, {"total_loss": iteration / 10})
        lines.log(iteration, EVALUATION, {"object_ap": 0.5})
    lines.finish({"object_ap": 0.75}, "finished")
    return folder / "metrics.jsonl"


def test_lines_are_json_and_not_finite_numbers_are_null(tmp_path: Path) -> None:
    lines = started(JsonLines(), tmp_path)
    lines.log(1, TRAINING, {"total_loss": float("nan"), "per_class": {"a": {"ap": float("inf")}}})
    lines.finish({}, "interrupted")
    (line,) = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert line == {"iteration": 1, "kind": "training", "total_loss": None, "per_class": {"a": {"ap": None}}}


def test_the_final_scores_are_the_last_line(tmp_path: Path) -> None:
    assert read_metrics(fill(tmp_path))[-1] == {"iteration": 30, "kind": "final", "object_ap": 0.75}


def test_starting_cuts_what_will_be_written_again(tmp_path: Path) -> None:
    path = fill(tmp_path)
    # The checkpoint of iteration 20 was written before its evaluation ended
    started(JsonLines(), tmp_path, 20, 10).finish({}, "interrupted")
    assert [(line["iteration"], line["kind"]) for line in read_metrics(path)] == [
        (10, "training"),
        (10, "evaluation"),
        (20, "training"),
    ]


def test_a_line_that_a_crash_cut_off_goes(tmp_path: Path) -> None:
    path = fill(tmp_path)
    with open(path, "a") as file:
        file.write('{"iteration": 40, "ki')
    started(JsonLines(), tmp_path, 100, 100).finish({}, "interrupted")
    assert [line["iteration"] for line in read_metrics(path)] == [10, 10, 20, 20, 30, 30]


def test_tensorboard_gets_the_same_numbers_and_the_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "0.png")
    board = started(TensorBoard(), tmp_path)
    board.log(5, EVALUATION, {"object_ap": 0.25, "per_class": {"cort": {"object_ap": 0.5}}, "name": "text"})
    board.images(5, {"overlays/val/0": tmp_path / "0.png", "drawn": picture})
    board.finish({"object_ap": 0.75}, "finished")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = ["evaluation/object_ap", "evaluation/per_class/cort/object_ap", "final/object_ap"]
    assert sorted(events.Tags()["scalars"]) == scalars
    assert [(event.step, event.value) for event in events.Scalars("evaluation/object_ap")] == [(5, 0.25)]
    assert [(event.step, event.value) for event in events.Scalars("final/object_ap")] == [(5, 0.75)]
    assert sorted(events.Tags()["images"]) == ["drawn", "overlays/val/0"]
    assert (events.Images("overlays/val/0")[0].height, events.Images("drawn")[0].width) == (4, 6)


class Broken(Tracker):
    def __init__(self, where: str) -> None:
        self.where = where
        self.finished: list[str] = []

    def start(self, session: Session) -> None:
        self._fail("start")

    def log(self, iteration: int, kind: str, values: object) -> None:
        self._fail("log")

    def finish(self, summary: object, status: str) -> None:
        self.finished.append(status)
        self._fail("finish")

    def _fail(self, place: str) -> None:
        if place == self.where:
            raise OSError("no connection")


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_warned_of_once_and_gets_nothing_more(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(where)
    trackers = Trackers([broken, JsonLines()])
    with caplog.at_level(logging.WARNING):
        trackers.start(session(tmp_path))
        for iteration in (1, 2):
            trackers.log(iteration, TRAINING, {"total_loss": 1.0})
            trackers.images(iteration, {})
        trackers.finish({"object_ap": 0.5}, "finished")
    assert caplog.text.count("Broken is disabled for the rest of this training: OSError: no connection") == 1
    assert broken.finished[0] == ("finished" if where == "finish" else "failed")
    assert [line["kind"] for line in read_metrics(tmp_path / "metrics.jsonl")] == ["training", "training", "final"]


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_an_error_of_a_required_tracker_is_raised_and_the_others_are_closed(where: str, tmp_path: Path) -> None:
    broken, other = Broken(where), Broken("nowhere")
    broken.required = True
    trackers = Trackers([other, broken])

    def use() -> None:
        trackers.start(session(tmp_path))
        trackers.log(1, TRAINING, {})
        trackers.finish({}, "finished")

    with pytest.raises(OSError, match="no connection"):
        use()
    if where != "finish":
        trackers.finish({}, "failed")
    assert other.finished == ["finished" if where == "finish" else "failed"]
    trackers.finish({}, "failed")
    assert len(other.finished) == 1


def test_flatten_leaves_texts_and_truth_values_out() -> None:
    assert flatten({"a": 1, "b": {"c": 2.5, "d": None, "e": True}}) == {"a": 1.0, "b/c": 2.5}
