"""Training: one plain loop and its parts."""
