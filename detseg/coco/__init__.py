"""COCO files: reading, checking, writing; Predictions files; the catalog of known data sets."""
