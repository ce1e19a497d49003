"""How a run was made: status, time, memory, versions, and the commands that repeat it."""

from __future__ import annotations

import shlex
from typing import Any

from detseg.files.run_files import POSTPROCESS_FILE, PREDICTIONS_FOLDER
from detseg.report.run.results import RunResults

_LONGEST = {"running": "running, or its process was killed", "unknown": "no record of its status"}


def status_text(run: RunResults) -> str:
    """Return the status of the training, with the error if it failed."""
    error = run.record.get("error")
    return _LONGEST.get(run.status, run.status) + (f": {error}" if error else "")


def seconds_trained(run: RunResults) -> float:
    """Return the seconds of all iterations, over all folds, without evaluations."""
    if run.parts:
        return sum(seconds_trained(part) for part in run.parts)
    total, before = 0.0, 0
    for line in run.of_kind("training"):
        total += (line["iteration"] - before) * (line.get("seconds") or 0.0)
        before = line["iteration"]
    return total


def facts(run: RunResults) -> list[tuple[str, str]]:
    """Return names and values of a table: time, machine, speed, versions."""
    record = run.record or (run.parts[0].record if run.parts else {})
    rows: list[tuple[str, Any]] = [("folder", run.path), ("status", status_text(run))]
    rows += [("started", record.get("started")), ("last written", record.get("updated"))]
    if record.get("resumed"):
        rows.append(("resumed", ", ".join(str(one.get("started")) for one in record["resumed"])))
    training = run.of_kind("training")
    if training and run.config is not None:
        last, cfg = training[-1], run.config
        seconds = seconds_trained(run) / max(last["iteration"], 1)
        images = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE
        waiting = sum(line.get("data_seconds") or 0 for line in training) / len(training)
        each = f"{images} image{'s' if images > 1 else ''} each"
        rows.append(("iterations", f"{last['iteration']:,} of {cfg.SOLVER.MAX_ITER:,}, {each}"))
        if seconds:
            speed = f"{seconds:.3f} s per iteration ({waiting:.3f} s waiting for data), {images / seconds:.1f} images/s"
            rows.append(("time", speed))
    memory = [line["memory_gb"] for line in training if isinstance(line.get("memory_gb"), (int, float))]
    rows.append(("memory", f"{max(memory):.2f} GB at most" if memory else None))
    if run.config is not None:
        device = f"MODEL.DEVICE {run.config.MODEL.DEVICE}"
        rows += [("model", run.config.MODEL.META_ARCHITECTURE), ("device", device)]
    rows += [("engine", f"{record.get('engine')}: {record.get('engine_reason')}" if record.get("engine") else None)]
    rows += [("processes", record.get("processes")), ("seed", record.get("seed")), ("host", record.get("host"))]
    environment = record.get("environment") or {}
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in environment.items()) or None))
    git = record.get("git")
    if git:
        changed = " with uncommitted changes" if git.get("changed") else ""
        rows.append(("source", f"commit {git.get('commit')}{changed}"))
    weights = run.path / "checkpoints" / "best.pth"
    if weights.is_file():
        rows.append(("best weights", f"{weights}, {weights.stat().st_size / 1e6:.1f} MB"))
    rows.append(("configuration hash", record.get("config_hash")))
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def repeat_lines(run: RunResults) -> list[str]:
    """Return the commands that repeat the training, prediction and scoring of the run; [] without a record."""
    record = run.record or (run.parts[0].record if run.parts else {})
    if not record.get("command"):
        return []
    lines = []
    git = record.get("git")
    if git:
        lines.append(f"git checkout {git.get('commit')}")
    if record.get("folder"):
        lines.append(shlex.join(["cd", str(record["folder"])]))
    words = [str(word) for word in record["command"]]
    lines.append(shlex.join(["python", *words] if words[0].endswith(".py") else words))
    if record.get("seed") is not None and run.config is not None:
        lines.append(f"# the seed was {record['seed']}: SEED {record['seed']} reproduces the random numbers")
    for one in run.sets[:1] if not run.parts else []:
        found, thresholds = run.path / PREDICTIONS_FOLDER / f"{one.name}.json.gz", run.path / POSTPROCESS_FILE
        truth = run.config.DATASETS.TEST[0] if run.config is not None and run.config.DATASETS.TEST else "TRUTH.json"
        words = ["--ground-truth", truth, "--predictions", str(found), "--postprocess", str(thresholds)]
        lines.append(shlex.join(["detseg", "evaluate", *words]))
    return lines
