"""From a trained model and images to Predictions."""
