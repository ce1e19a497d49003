"""The same as `detseg run_study`; `--help` tells the options."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("run_study")
