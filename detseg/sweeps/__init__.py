"""Sweeps: files as W&B's servers take them, run without a server."""
