"""The older name of `dino pack`: `python -m dino.data.pack IMAGE_FOLDER OUT`."""

import sys

from dino.cli.pack import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
