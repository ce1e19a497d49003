"""Weights of models: where they come from, reading them safely, their names elsewhere, and fitting them to a model."""

from detseg.models.weights.loading import LoadReport, adapt_input_channels, load_state, load_weights, read_state
from detseg.models.weights.sources import resolve_weights

__all__ = ["LoadReport", "adapt_input_channels", "load_state", "load_weights", "read_state", "resolve_weights"]
