"""`python -m detseg COMMAND ...`, where the `detseg` script is not on the path."""

from detseg.cli.main import console

console()
