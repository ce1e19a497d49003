"""Folders of images and label images to COCO files; the same as `detseg prepare_label_images`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_label_images")
