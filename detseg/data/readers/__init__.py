"""Readers: one a kind of source, each from files as they are downloaded to COCO files."""
