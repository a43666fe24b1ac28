"""The older name of `dino verify`: `python -m dino.verify`."""

import sys

from dino.cli.verify import main
from dino.errors import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
