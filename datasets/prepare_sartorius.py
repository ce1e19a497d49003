"""The Sartorius competition, as downloaded, to COCO files; the same as `detseg prepare_sartorius`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_sartorius")
