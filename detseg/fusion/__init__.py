"""Fuse and postprocess Predictions: ensembles, overlaps, size limits, thresholds. No model, no PyTorch, no GPU."""
