"""Read, validate and write COCO files and Predictions files; the catalog of known data sets."""
