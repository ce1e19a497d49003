"""Choosing thresholds and settings of a postprocess and a fusion on out-of-fold predictions."""
