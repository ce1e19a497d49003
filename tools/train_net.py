"""Train a model; `python tools/train_net.py --help` says how."""

from detseg.cli.main import run_tool

if __name__ == "__main__":  # worker processes that are started anew import this file
    run_tool("train_net")
