"""From Predictions to better Predictions: overlaps, size limits, thresholds. No model, no PyTorch, no GPU."""
