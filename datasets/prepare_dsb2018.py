"""Data Science Bowl 2018, as downloaded, to COCO files; the same as `detseg prepare_dsb2018`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_dsb2018")
