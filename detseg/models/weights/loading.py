"""From an address to a model with these weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detseg.config.pretrained_rules import check_pretrained_input
from detseg.errors import WeightsError
from detseg.models.weights.fitting import LoadReport, load_state
from detseg.models.weights.reading import read_weights
from detseg.models.weights.renaming import TORCHVISION, names_of_model
from detseg.models.weights.sources import resolve_weights

_logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, source: str | Path, *, fine_tune: bool = False, cfg: Any = None) -> LoadReport:
    """Load weights of any address that `resolve_weights` knows into a model.

    fine_tune False (prediction): every entry must be there and fit. True (the start of a training): parts that the file
    lacks keep their initial weights, and so do the last layers of a model for another number of classes; a stem for
    another number of channels is adapted. All of that is logged, as a table and by name.

    cfg: the model's configuration: weights that need a certain input (torchvision's) are refused where it is another.

    Raises:
        WeightsError: with names and shapes, for everything else, and for files that are no weights. ConfigError: the
            input that the configuration gives is not what the weights were trained with.
    """
    path = resolve_weights(source)
    stored = read_weights(path)
    own = model.state_dict()
    try:
        named = names_of_model(stored, own, path.name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    if cfg is not None and named.origin == TORCHVISION:
        check_pretrained_input(cfg, str(source))
    report = load_state(model, named.state, source=str(source), fine_tune=fine_tune)
    _log(report, source)
    return report


def read_state(source: str | Path) -> dict[str, Tensor]:
    """Read the tensors of any address that `resolve_weights` knows, under the names of the file."""
    return read_weights(resolve_weights(source)).state


def _log(report: LoadReport, source: str | Path) -> None:
    _logger.info("%s: loaded %d entries", source, len(report.loaded) + len(report.adapted))
    if report.adapted:
        _logger.warning("%s: the first convolution was adapted to another number of channels", source)
    if report.new or report.unused:
        _logger.info("%s", report.table())
    if report.reinitialized:
        _logger.warning(
            "%s: made for other classes; initial weights stay in: %s", source, ", ".join(report.reinitialized)
        )
    if report.missing:
        _logger.warning("%s: has no %s; initial weights stay there", source, _short(report.missing))
    if report.unused:
        _logger.warning("%s: not used: %s", source, _short(report.unused))


def _short(names: list[str]) -> str:
    parts = sorted({".".join(name.split(".")[:3]) for name in names})
    return ", ".join(parts[:8]) + (f" and {len(parts) - 8} more" if len(parts) > 8 else "")
