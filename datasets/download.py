"""Data sets from their official places; the same as `detseg download`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("download")
