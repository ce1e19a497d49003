"""Studies: trainings and their evaluation as stages that run once, in parallel, and are compared in a table."""
