"""Competition submissions: predictions written as CSV, validated, read back and scored. No PyTorch."""
