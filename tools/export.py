"""Annotations or predictions in the forms that other programs read; the same as `detseg export`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("export")
