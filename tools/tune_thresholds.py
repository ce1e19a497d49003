"""The same as `detseg tune_thresholds`; `--help` tells the options."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("tune_thresholds")
