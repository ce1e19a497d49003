"""Run W&B sweep files without a server."""
