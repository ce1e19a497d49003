"""What happens when a loss or gradient is not a finite number: stop, say where, and leave everything to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detseg.engine.checkpoint import save_checkpoint
from detseg.engine.files import write_atomically, write_text
from detseg.engine.metric_log import finite
from detseg.errors import RunError
from detseg.structures.sample import Sample


def stop_not_finite(
    what: str,
    *,
    iteration: int,
    samples: Sequence[Sample],
    losses: Mapping[str, float],
    model: torch.nn.Module,
    folder: Path,
    learning_rate: float,
    rank: int = 0,
) -> None:
    """Dump the batch and the model, and end the training.

    The folder gets one NPZ a sample (image, layers, classes, ignore as in Sample), `report.json` and `model.pth`, the
    state in which the batch was seen.

    Args:
        what: "loss" or "gradient", for the message.
        iteration: the one in which it happened, from 1.
        samples: the batch.
        losses: by name, as they were.
        model: with the weights that gave them.
        folder: where dumps go; each gets a folder of its own.
        learning_rate: of that iteration.
        rank: of this process among several: each dumps its own images.

    Raises:
        RunError: always; it names the images.
    """
    place = folder / (f"iteration_{iteration:07d}" + (f"_process_{rank}" if rank else ""))
    for index, sample in enumerate(samples):
        write_atomically(place / f"sample_{index}.npz", lambda file, sample=sample: _write_sample(file, sample))
    report = {
        "what": what,
        "iteration": iteration,
        "learning_rate": learning_rate,
        "losses": finite({name: float(value) for name, value in losses.items()}),
        "not_finite": [name for name, value in losses.items() if not np.isfinite(value)],
        "images": [{"image_id": s.image_id, "file_name": s.file_name, "objects": len(s.classes)} for s in samples],
    }
    write_text(place / "report.json", json.dumps(report, indent=2, default=str) + "\n")
    save_checkpoint(place / "model.pth", {"model": dict(model.state_dict()), "iteration": iteration - 1})
    named = ", ".join(str(sample.file_name or sample.image_id) for sample in samples)
    parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise RunError(
        f"the {what} is not finite in iteration {iteration} (learning rate {learning_rate:.3g}; {parts}). "
        f"Images of this batch: {named}. The batch and the model lie in {place}. Look at the images; if they are "
        "right, lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set SOLVER.CLIP_GRADIENTS.ENABLED True"
    )


def _write_sample(file: Any, sample: Sample) -> None:
    arrays: dict[str, np.ndarray] = {"image": sample.image, "classes": sample.classes}
    if sample.layers is not None:
        arrays["layers"] = sample.layers.layers
    if sample.ignore is not None:
        arrays["ignore"] = sample.ignore
    np.savez_compressed(file, **arrays)
