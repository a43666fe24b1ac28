"""The older name of `dino inspect`: `python -m dino.inspect FILE`."""

import sys

from dino.cli.inspect import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
