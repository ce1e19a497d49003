"""Images with GeoJSON files of QuPath to COCO files; the same as `detseg prepare_geojson`."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("prepare_geojson")
