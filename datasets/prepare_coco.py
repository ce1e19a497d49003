"""A COCO file, checked and split; the same as `detseg prepare_coco`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_coco")
