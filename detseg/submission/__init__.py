"""Competitions' submissions: predictions as CSV, checked, read back and scored. No PyTorch."""
