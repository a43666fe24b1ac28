"""The older name of `dino verify`: `python -m dino.verify`."""

import sys

from dino.cli.session import exit_code
from dino.cli.verify import main

if __name__ == "__main__":
    sys.exit(exit_code(main))
