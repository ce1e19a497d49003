"""Run folders: their files, records, checkpoints and metrics."""
