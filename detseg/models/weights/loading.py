"""Load weights from any address into a model, and refuse those that do not fit."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detseg.config.options import Problems
from detseg.errors import WeightsError, list_problems
from detseg.models.pretrained import note_torchvision_input, warn_of_other_input
from detseg.models.table import model_rules
from detseg.models.weights.files import read_weights
from detseg.models.weights.names import TORCHVISION, names_of_model, without_shared_prefix
from detseg.models.weights.sources import resolve_weights
from detseg.models.weights.timm_names import PLACE

_logger = logging.getLogger(__name__)

# Older Detectron2 checkpoints store these, although they follow from the configuration.
DERIVED_ENTRIES = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.")
# Batch counters, which norms with fixed statistics lack and nothing here uses.
COUNTS = "num_batches_tracked"
# Their shapes depend on the number of classes: reinitialized for other classes. A model may have its own list.
CLASS_ENTRIES = ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.")
STEM_WEIGHTS = ("stem.conv1.weight", "backbone.body.conv1.weight")


@dataclass
class LoadReport:
    """The result of loading: names of the entries that were loaded, that keep their initial weights because the file
    lacks them (`missing`) or has other classes (`reinitialized`), that the model lacks (`unused`), and that were
    adapted to another number of input channels (`adapted`).

    trained_images: record of the training images in the file, see TrainedImages, or None. object_diameter: of these
    images, see `data.object_size`, or None.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reinitialized: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    trained_images: Any = None
    object_diameter: float | None = None

    @property
    def new(self) -> list[str]:
        """The entries that keep their initial weights."""
        return self.missing + self.reinitialized

    def table(self, depth: int = 2) -> str:
        """Return a table as text: loaded and new entries for each part of the model, and entries that only the file
        has."""
        parts: dict[str, list[int]] = {}
        for column, names in enumerate(([*self.loaded, *self.adapted], self.new, self.unused)):
            for name in names:
                parts.setdefault(".".join(name.split(".")[:depth]), [0, 0, 0])[column] += 1
        width = max((len(part) for part in parts), default=4)
        lines = [f"  {'part':{width}}  loaded  new  only in the file"]
        lines += [
            f"  {part:{width}}  {loaded:6}  {new:3}  {left:16}" for part, (loaded, new, left) in sorted(parts.items())
        ]
        return "\n".join(lines)


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str = "state_dict", fine_tune: bool = False
) -> LoadReport:
    """Load a state_dict under the model's own names; see `load_weights`. `source` names it in messages."""
    own = model.state_dict()
    state = without_shared_prefix(state, own)
    prefix = getattr(model, "weights_prefix", "")  # of a part that a file may contain alone
    if prefix and all(f"{prefix}{name}" in own for name in state):
        state = {f"{prefix}{name}": value for name, value in state.items()}
    elsewhere = getattr(model, "given_elsewhere", None)
    class_entries = getattr(model, "class_entries", CLASS_ENTRIES)
    report, problems, fitting = LoadReport(), [], {}
    for name, value in state.items():
        if name not in own:
            if not name.startswith(DERIVED_ENTRIES) and not name.endswith(COUNTS):
                report.unused.append(name)
        elif value.shape == own[name].shape:
            fitting[name] = value
            report.loaded.append(name)
        elif fine_tune and name.startswith(class_entries) and value.shape[1:] == own[name].shape[1:]:
            report.reinitialized.append(name)
        elif fine_tune and _differ_in_input(name, value, own[name]):
            fitting[name] = adapt_input_channels(value, own[name].shape[1])
            report.adapted.append(name)
        else:
            problems.append(f"{name}: {tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model")
    report.missing = [name for name in own if name not in state and not name.endswith(COUNTS)]
    if elsewhere is not None and not any(name.startswith(elsewhere) for name in state):
        report.missing = [name for name in report.missing if not name.startswith(elsewhere)]
    if not fine_tune:
        problems += [f"{name}: not in the file, {tuple(own[name].shape)} in the model" for name in report.missing]
    if not fine_tune or not fitting:
        problems += [f"{name}: {tuple(state[name].shape)} in the file, not in the model" for name in report.unused]
    if problems:
        raise WeightsError(
            f"{source}: these weights do not fit the model; they may be from another configuration:\n"
            + list_problems(problems)
        )
    broken = [name for name, value in fitting.items() if not value.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{source}: {len(broken)} of {len(fitting)} weights are not finite (NaN or infinity), as after a diverged "
            "training or a conversion to half precision; use an earlier checkpoint:\n" + list_problems(broken)
        )
    current = OrderedDict(fitting)
    current._metadata = own._metadata  # names are the model's current ones: no conversion from an older format
    model.load_state_dict(current, strict=False)
    return report


def _differ_in_input(name: str, stored: Tensor, own: Tensor) -> bool:
    """Whether an entry is a first convolution stored with another number of input channels."""
    # In a timm network the first convolution can have any name, but no other one has equal outputs and other inputs.
    is_first = name.endswith(STEM_WEIGHTS) or PLACE in name
    one, other = stored.shape, own.shape
    return is_first and len(one) == len(other) == 4 and (one[0], one[2:]) == (other[0], other[2:])


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a first convolution (O, C, h, w) to another number of input channels.

    Every channel gets the mean over the old ones, scaled so that an image with equal channels gives the same result.
    """
    mean = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return mean.repeat(1, channels, 1, 1)


def load_weights(model: nn.Module, source: str | Path, *, fine_tune: bool = False, cfg: Any = None) -> LoadReport:
    """Load weights from any address that `resolve_weights` accepts into a model.

    fine_tune False (prediction): every entry must exist and fit. True (start of a training): parts that the file lacks
    keep their initial weights, and so do the last layers for another number of classes; a stem for another number of
    channels is adapted. All of that is logged, as a table and by name.

    cfg: the model's configuration: weights that imply a certain input (torchvision's) are refused for another one.

    Raises:
        WeightsError: for anything else, with names and shapes, and for files that are not weights. ConfigError: the
            input in the configuration differs from that of the weights' training.
    """
    path = resolve_weights(source)
    stored = read_weights(path)
    own = model.state_dict()
    try:
        named = names_of_model(stored, own, path.name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    if cfg is not None and named.origin == TORCHVISION:
        problems = Problems(cfg)
        note_torchvision_input(problems, str(source), model_rules(cfg))
        problems.raise_if_any()
    if cfg is not None and named.origin:
        warn_of_other_input(cfg, named.origin)
    report = load_state(model, named.state, source=str(source), fine_tune=fine_tune)
    report.trained_images, report.object_diameter = stored.trained_images, stored.object_diameter
    _log(report, source)
    return report


def read_state(source: str | Path) -> dict[str, Tensor]:
    """Read the tensors of any address that `resolve_weights` accepts, under their names in the file."""
    return read_weights(resolve_weights(source)).state


def _log(report: LoadReport, source: str | Path) -> None:
    _logger.info("%s: loaded %d entries", source, len(report.loaded) + len(report.adapted))
    if report.adapted:
        _logger.warning("%s: the first convolution was adapted to another number of channels", source)
    if report.new or report.unused:
        _logger.info("%s", report.table())
    if report.reinitialized:
        _logger.warning(
            "%s: has other classes; these keep their initial weights: %s", source, ", ".join(report.reinitialized)
        )
    if report.missing:
        _logger.warning("%s: has no %s, which keep their initial weights", source, _short(report.missing))
    if report.unused:
        _logger.warning("%s: not used: %s", source, _short(report.unused))


def _short(names: list[str]) -> str:
    parts = sorted({".".join(name.split(".")[:3]) for name in names})
    return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")
