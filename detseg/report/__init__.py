"""Pictures for people: images with the contours of ground truth and predictions."""
