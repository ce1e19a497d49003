"""File formats of images with masks: a reader and a writer side by side for each."""
