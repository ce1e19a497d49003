"""What a trial has reached, read from files as the programs write them."""

import json
from pathlib import Path

from detseg.sweeps.metrics import read_metric


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n")


def test_evaluations_of_a_training_and_its_best(tmp_path: Path):
    metric = read_metric({"name": "evaluation/object_ap", "goal": "maximize"}, "train_net", [])
    assert (metric.reported(tmp_path), metric.reached(tmp_path)) == ([], None), "before anything is written"
    lines = [{"kind": "training", "iteration": 1, "total_loss": 9.0}]
    lines += [{"kind": "evaluation", "iteration": n, "object_ap": score} for n, score in ((2, 0.1), (4, 0.3), (6, 0.2))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "evaluation", "object')  # killed while it wrote
    assert metric.reported(tmp_path) == [0.1, 0.3, 0.2]
    assert metric.reached(tmp_path) == 0.3
    final = read_metric({"name": "final/per_class/round/mean_f1", "goal": "maximize"}, "train_net", [])
    write(tmp_path / "final_metrics.json", {"object_ap": 0.5, "per_class": {"round": {"mean_f1": 0.75}}})
    assert final.reached(tmp_path) == 0.75


def test_folds_are_reported_as_they_finish(tmp_path: Path):
    given = {"name": "final/cross_fitted/object_ap", "goal": "maximize"}
    metric = read_metric(given, "train_net", ["--config", "c.yaml", "--fold", "all"])
    write(tmp_path / "folds.json", {"folds": 3})
    write(tmp_path / "fold0" / "final_metrics.json", {"object_ap": 0.4})
    assert (metric.reported(tmp_path), metric.reached(tmp_path)) == ([0.4], None)
    write(tmp_path / "fold1" / "final_metrics.json", {"object_ap": 0.6})
    write(tmp_path / "final_metrics.json", {"object_ap": 0.5, "cross_fitted": {"object_ap": 0.45}})
    assert (metric.reported(tmp_path), metric.reached(tmp_path)) == ([0.4, 0.6], 0.45)


def test_cross_fitted_score_of_a_tuning(tmp_path: Path):
    metric = read_metric({"name": "tuning/cross_fitted/after", "goal": "maximize"}, "tune_thresholds", [])
    table = {"in_sample": {"after": {"value": 0.9}}, "cross_fitted": {"after": {"value": 0.8, "low": 0.7}}}
    write(tmp_path / "tuned.json", table)
    assert metric.reached(tmp_path) == 0.8
    write(tmp_path / "tuned.json", {**table, "cross_fitted": None})
    assert metric.reached(tmp_path) is None
