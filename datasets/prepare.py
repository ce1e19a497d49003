"""Data of any format to COCO files; the same as `detseg prepare`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare")
