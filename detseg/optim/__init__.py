"""Optimizers, learning-rate schedules, mixed precision, weight averages."""
