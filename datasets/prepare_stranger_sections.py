"""Stranger Sections, or other masks of classes, to COCO files; the same as `detseg prepare_stranger_sections`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_stranger_sections")
