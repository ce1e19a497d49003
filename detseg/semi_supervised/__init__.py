"""Learning from images without labels: pseudo-labels and their gates."""

from detseg.semi_supervised.gates import Gates
from detseg.semi_supervised.labels import LabelInputs, PseudoLabels, label_images
from detseg.semi_supervised.leaks import LeakRules

__all__ = ["Gates", "LabelInputs", "LeakRules", "PseudoLabels", "label_images"]
