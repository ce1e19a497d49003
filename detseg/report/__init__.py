"""Reports: overlays of ground truth and predictions, contact sheets, tables, and HTML pages of data and trainings."""
