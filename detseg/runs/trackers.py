"""Numbers of a training: one JSON object a line in metrics.jsonl, and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from detseg.files.atomic import write_text, writing

logger = logging.getLogger(__name__)

TRAINING = "training"
EVALUATION = "evaluation"


class MetricLog:
    """Writes the numbers of a run as they come.

    Every line has `iteration` (finished iterations) and `kind` ("training" or "evaluation"); numbers that are not
    finite are null. Opening it cuts the lines that a resumed training will write again.

    Args:
        path: the metrics.jsonl of the run.
        tensorboard: folder for TensorBoard's event files, or None.
        iteration: lines of later iterations are cut.
        last_evaluation: lines of later evaluations are cut.
    """

    def __init__(
        self, path: Path, *, tensorboard: Path | None = None, iteration: int = 0, last_evaluation: int = 0
    ) -> None:
        cut_lines(path, {TRAINING: iteration, EVALUATION: last_evaluation})
        self._path = path
        with writing(path):
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (held until close)
        self._writer = _tensorboard_writer(tensorboard, iteration) if tensorboard is not None else None

    def write(self, iteration: int, kind: str, values: Mapping[str, Any]) -> None:
        """Add one line; nested mappings are allowed."""
        line = {"iteration": iteration, "kind": kind, **finite(dict(values))}
        with writing(self._path):
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
            if self._writer is not None:
                for name, value in flatten(values).items():
                    self._writer.add_scalar(f"{kind}/{name}", value, iteration)
                self._writer.flush()

    def write_image(self, name: str, image: Any, iteration: int) -> None:
        """Show an image (C, H, W), uint8 or float 0..1, in TensorBoard; metrics.jsonl holds none."""
        if self._writer is not None:
            with writing(self._path):
                self._writer.add_image(name, image, iteration)
                self._writer.flush()

    def close(self) -> None:
        # All was flushed; what could not be is known by now.
        with suppress(OSError):
            self._file.close()
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl; a last line that was cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def cut_lines(path: Path, limits: Mapping[str, int]) -> None:
    """Remove the lines whose iteration is above the limit of their kind, and a last line that is not whole."""
    if not path.is_file():
        return
    lines = read_metrics(path)
    kept = [line for line in lines if line["iteration"] <= limits.get(line["kind"], max(limits.values()))]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def finite(value: Any) -> Any:
    """Copy nested values with NaN and infinities as None, because JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers among nested values, by names joined with "/"."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[name] = float(value)
    return flat


def _tensorboard_writer(folder: Path, iteration: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        logger.info("no TensorBoard files are written (%s); metrics.jsonl has the same numbers", error)
        return None
    return SummaryWriter(str(folder), purge_step=iteration + 1)
