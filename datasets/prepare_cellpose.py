"""Images with masks of Cellpose to COCO files; the same as `detseg prepare_cellpose`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_cellpose")
