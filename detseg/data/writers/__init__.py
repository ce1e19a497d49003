"""Annotations and predictions in the forms that other programs read; see docs/data.md."""
