"""Matching of objects, and the scores: object AP, mean F1, COCO AP. No PyTorch."""
