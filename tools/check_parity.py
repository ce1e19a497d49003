"""Compare the native models with numbers computed by Detectron2: see --help."""

from detseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("check_parity")
