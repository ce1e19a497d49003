"""Synthetic cells: images similar to phase contrast with exact masks, of any size and density, for tests and trials."""

from detseg.curation.synthetic.cells import KINDS
from detseg.curation.synthetic.dataset import generate_dataset, make_missing_sets
from detseg.curation.synthetic.rendering import make_image

__all__ = ["KINDS", "generate_dataset", "make_image", "make_missing_sets"]
