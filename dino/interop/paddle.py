"""The older name of `dino convert --to paddle`."""

import sys

from dino.cli.convert import convert_paddle
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(convert_paddle))
