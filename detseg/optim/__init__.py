"""What changes the weights: optimizers, learning-rate schedules, mixed precision."""
