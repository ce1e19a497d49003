"""BBBC039 to COCO files; the same as `detseg prepare_bbbc039`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_bbbc039")
