"""`detseg check_parity`: compare the native models with numbers computed by Detectron2, on your own hardware."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detseg.models.parity import Row

DESCRIPTION = (
    "Compare the native models with numbers computed by Detectron2. The exit status is 1 if a difference is "
    "out of bounds."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE.npz", help="files of reference numbers, each with FILE.json beside it"
    )
    parser.add_argument("--device", default="cpu", help="device to compute on: cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--summary", action="store_true", help="print a Markdown table of the largest differences of every file instead"
    )
    parser.add_argument("--dump", metavar="OUT_DIR", help="write what was computed to this folder, with FILE's names")


def run(arguments: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from detseg.files.atomic import make_folder, written_whole
    from detseg.models.devices import choose_device
    from detseg.models.parity import KINDS, Case, check_case, compute

    device = choose_device(arguments.device)
    if device.type == "cuda":
        # The bounds are for full single precision.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    failed = 0
    if arguments.summary:
        print("| case | " + " | ".join(KINDS) + " |")
        print("|---" * (len(KINDS) + 1) + "|")
    for file in arguments.files:
        case = Case.load(Path(file))
        computed = compute(case, device)
        rows = check_case(case, computed, device)
        _print_summary(case.path.stem, rows) if arguments.summary else _print_table(case.path.name, rows)
        failed += sum(not row.passed for row in rows)
        if arguments.dump:
            make_folder(Path(arguments.dump))
            path = Path(arguments.dump) / case.path.name
            with written_whole(path, "what was computed") as temporary, temporary.open("wb") as dump:
                np.savez_compressed(dump, **computed)
            print(f"  written: {path}")
    print(f"{failed} differences out of bounds" if failed else "everything within bounds")
    return 1 if failed else 0


def _print_table(title: str, rows: Sequence[Row]) -> None:
    width = max(len(row.name) for row in rows)
    print(title)
    for row in rows:
        mark = "" if row.passed else "   <-- out of bounds"
        print(f"  {row.name:{width}}  {row.difference:9.2e}  bound {row.bound:7.1e}  {row.measure}{mark}")


def _print_summary(name: str, rows: Sequence[Row]) -> None:
    """Print one line with the largest difference of each kind; for masks, as a share of the bound."""
    from detseg.models.parity import KINDS, worst_of_kinds

    worst = worst_of_kinds(rows)
    cells = []
    for kind in KINDS:
        row = worst.get(kind)
        cell = "" if row is None else f"{row.difference:.0e}" if row.difference else "0"
        cells.append(cell if row is None or row.passed else f"**{cell}**")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
