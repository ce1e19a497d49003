"""Mean teacher: the moving average of the student's weights labels unlabelled images for the student."""
