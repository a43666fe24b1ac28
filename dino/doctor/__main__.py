"""The older name of `dino doctor`: `python -m dino.doctor`."""

import sys

from dino.cli.doctor import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
