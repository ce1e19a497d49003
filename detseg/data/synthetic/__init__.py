"""Synthetic cells: pictures like phase contrast with exact masks, of any size and density, to learn and test with."""

from detseg.data.synthetic.dataset import generate_dataset
from detseg.data.synthetic.image import make_image
from detseg.data.synthetic.shapes import KINDS

__all__ = ["KINDS", "generate_dataset", "make_image"]
