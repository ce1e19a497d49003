"""Object matching and scores: object AP, mean F1, COCO AP. No PyTorch."""
