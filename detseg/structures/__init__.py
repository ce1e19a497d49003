"""What passes between the rooms of detseg: boxes, run-lengths, label layers, samples and predictions. NumPy only."""

from detseg.structures.label_layers import LabelLayers
from detseg.structures.predictions import Predictions
from detseg.structures.sample import Sample

__all__ = ["LabelLayers", "Predictions", "Sample"]
