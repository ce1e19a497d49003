"""Augmentation of training samples: geometry of image and masks together, and intensities."""
