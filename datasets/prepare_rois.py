"""Images with regions of ImageJ to COCO files; the same as `detseg prepare_rois`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_rois")
