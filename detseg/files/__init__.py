"""File input and output: atomic writes, locks, resumable downloads, and bounded reading of untrusted files."""
