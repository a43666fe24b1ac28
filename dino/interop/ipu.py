"""The older name of `dino convert --to ipu`."""

import sys

from dino.cli.convert import convert_ipu
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(convert_ipu))
