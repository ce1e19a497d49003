"""File formats of images with masks: for each a reader and a writer side by side."""
