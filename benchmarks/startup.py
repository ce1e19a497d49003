"""How long `import detseg` and `detseg --help` take, each in new processes.

    python benchmarks/startup.py [--rounds 15]

Times are of whole processes, in turns with an empty one: what Python itself needs is told apart. The goal for the
import is for what it adds; the goal for the help is for the whole process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

from measuring import machine, take_turns, verdict

IMPORT_GOAL, HELP_GOAL = 0.1, 0.3
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import detseg": ["-c", "import detseg"],
    "detseg --help": ["-m", "detseg", "--help"],
    "detseg train --help": ["-m", "detseg", "train", "--help"],
    "detseg predict --help": ["-m", "detseg", "predict", "--help"],
}


def _process(words: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    print(machine())
    timing = take_turns({name: _process(words) for name, words in COMMANDS.items()}, arguments.rounds)
    empty = timing.median("python -c pass")
    for name in COMMANDS:
        seconds = timing.median(name)
        text = f"{name:22} {seconds:.3f} s, {seconds - empty:.3f} s more than an empty process"
        if name == "import detseg":
            text += f"   goal {IMPORT_GOAL} s: {verdict(seconds - empty < IMPORT_GOAL)}"
        elif name.endswith("detseg --help"):
            text += f"   goal {HELP_GOAL} s: {verdict(seconds < HELP_GOAL)}"
        print(text)


if __name__ == "__main__":
    main()
