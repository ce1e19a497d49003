"""`python -m detseg COMMAND ...`, where the `detseg` script is not on the path."""

import sys

from detseg.cli.main import main

sys.exit(main())
