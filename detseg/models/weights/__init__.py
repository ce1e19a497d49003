"""Model weights: their sources, safe reading, names in other libraries, and loading into a model."""

from detseg.models.weights.loading import LoadReport, adapt_input_channels, load_state, load_weights, read_state
from detseg.models.weights.sources import resolve_weights

__all__ = ["LoadReport", "adapt_input_channels", "load_state", "load_weights", "read_state", "resolve_weights"]
