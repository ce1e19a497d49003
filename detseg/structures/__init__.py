"""The data structures of detseg: boxes, masks, label layers, samples and predictions. NumPy only."""

from detseg.structures.label_layers import LabelLayers
from detseg.structures.predictions import Predictions
from detseg.structures.sample import Sample

__all__ = ["LabelLayers", "Predictions", "Sample"]
