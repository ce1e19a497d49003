"""Semi-supervised learning: pseudo-labels for unlabelled images, and the gates that select them."""

from detseg.semi_supervised.gates import Gates
from detseg.semi_supervised.labels import LabelInputs, PseudoLabels, label_images
from detseg.semi_supervised.leaks import LeakRules

__all__ = ["Gates", "LabelInputs", "LeakRules", "PseudoLabels", "label_images"]
