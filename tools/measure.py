"""The same as `detseg measure`; `--help` tells the options."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("measure")
