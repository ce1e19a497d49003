"""The same as `detseg fit_triage`; `--help` tells the options."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("fit_triage")
