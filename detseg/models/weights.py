"""Weights of models: reading checkpoints, and refusing what does not fit."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detseg.errors import WeightsError, list_problems

_logger = logging.getLogger(__name__)

# Older Detectron2 checkpoints store these, although they follow from the configuration.
DERIVED_ENTRIES = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.")
# Their sizes follow from the number of classes: trained anew for other classes.
CLASS_ENTRIES = (
    "roi_heads.box_predictor.",
    "roi_heads.mask_head.predictor.",
)
STEM_WEIGHT = "stem.conv1.weight"


@dataclass
class LoadReport:
    """What was taken from a file: names of the entries that were loaded, that keep their initial weights because the
    file has none (`missing`) or was made for other classes (`reinitialized`), that the model does not have (`unused`),
    and that were adapted to another number of input channels (`adapted`)."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reinitialized: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)


def load_weights(model: nn.Module, path: str | Path, *, fine_tune: bool = False) -> LoadReport:
    """Load a .pth file, {"model": state_dict} or a bare state_dict, into a model.

    fine_tune False (prediction): every entry must be there and fit. True (the start of a training): parts that the file
    lacks keep their initial weights, and so do the last layers of a model for another number of classes; a stem for
    another number of channels is adapted. All of that is logged.

    Raises WeightsError, with names and shapes, for everything else, and for files that are no such checkpoint.
    """
    state = read_state(path)
    report = load_state(model, state, source=str(path), fine_tune=fine_tune)
    _log(report, path)
    return report


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read the state_dict of a checkpoint. Nothing but tensors and plain values is ever unpickled."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file of weights")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(
            f"{path}: cannot be read as a PyTorch checkpoint of tensors and plain values ({reason[0][:200]}); expected "
            'a .pth file, {"model": state_dict}, as detseg and Detectron2 write it; is it truncated?'
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f'{path}: holds no weights; expected {{"model": {{name: tensor}}}} or {{name: tensor}}')
    return dict(state)


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str = "state_dict", fine_tune: bool = False
) -> LoadReport:
    """`load_weights` for a state_dict at hand; `source` names it in messages."""
    own = model.state_dict()
    report, problems, fitting = LoadReport(), [], {}
    for name, value in state.items():
        if name not in own:
            if not name.startswith(DERIVED_ENTRIES):
                report.unused.append(name)
        elif value.shape == own[name].shape:
            fitting[name] = value
            report.loaded.append(name)
        elif fine_tune and name.startswith(CLASS_ENTRIES) and value.shape[1:] == own[name].shape[1:]:
            report.reinitialized.append(name)
        elif fine_tune and name.endswith(STEM_WEIGHT) and value.shape[2:] == own[name].shape[2:]:
            fitting[name] = adapt_input_channels(value, own[name].shape[1])
            report.adapted.append(name)
        else:
            problems.append(f"{name}: {tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model")
    report.missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    if not fine_tune:
        problems += [f"{name}: not in the file, {tuple(own[name].shape)} in the model" for name in report.missing]
        problems += [f"{name}: {tuple(state[name].shape)} in the file, not in the model" for name in report.unused]
    elif not fitting:
        problems += [f"{name}: {tuple(state[name].shape)} in the file, not in the model" for name in report.unused]
    if problems:
        raise WeightsError(
            f"{source}: these weights do not fit the model; was it trained with another configuration?\n"
            + list_problems(problems)
        )
    model.load_state_dict(fitting, strict=False)
    return report


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Return the first convolution (O, C, h, w) for another number of input channels.

    Every channel gets the mean over the old ones, scaled so that an image with equal channels gives the same answer.
    """
    mean = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return mean.repeat(1, channels, 1, 1)


def _log(report: LoadReport, path: str | Path) -> None:
    _logger.info("%s: loaded %d entries", path, len(report.loaded) + len(report.adapted))
    if report.adapted:
        _logger.warning("%s: the first convolution was adapted to another number of channels", path)
    if report.reinitialized:
        _logger.warning(
            "%s: made for other classes; initial weights stay in: %s", path, ", ".join(report.reinitialized)
        )
    if report.missing:
        _logger.warning("%s: has no %s; initial weights stay there", path, _short(report.missing))
    if report.unused:
        _logger.warning("%s: not used: %s", path, _short(report.unused))


def _short(names: list[str]) -> str:
    parts = sorted({".".join(name.split(".")[:3]) for name in names})
    return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")
