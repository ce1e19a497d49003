"""The version of detseg; a file of its own, so that every package may name it."""

__version__ = "0.1.0"
