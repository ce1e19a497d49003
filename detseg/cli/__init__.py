"""The command line, shared by `tools/*.py` and the `detseg` command."""
