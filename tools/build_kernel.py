"""The same as `detseg build_kernel`; `--help` tells the options."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("build_kernel")
