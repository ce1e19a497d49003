"""Turn weights of any kind into a safetensors file, or into a .pth file for Detectron2: see --help."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("convert_weights")
