"""Inference: from a trained model and images to Predictions."""
