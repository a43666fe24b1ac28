"""The older name of `dino check`: `python -m dino.data.check PATH`."""

import sys

from dino.cli.check import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
