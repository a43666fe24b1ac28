"""The older name of `dino align`: `python -m dino.devices.align`."""

import sys

from dino.cli.align import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
