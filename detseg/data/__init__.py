"""From files to samples: images, COCO files, known data sets, splits, synthetic cells and the loader."""
