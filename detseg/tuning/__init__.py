"""Choose thresholds and other settings of postprocessing and fusion on out-of-fold predictions."""
