"""Score copy detection of a frozen backbone: `eval_copy_detection.py --data_path COPYDAYS`."""

import sys

from dino.cli.copy_detection import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
