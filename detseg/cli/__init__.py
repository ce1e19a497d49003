"""The command line: argparse and nothing else. `tools/*.py` and the `detseg` command both come here."""
