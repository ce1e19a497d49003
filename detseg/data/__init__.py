"""From a COCO data set to batches of samples: folds, preprocessing, augmentation, copy-paste, sampling, loader."""
