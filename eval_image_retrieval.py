"""Score retrieval with a frozen backbone: `eval_image_retrieval.py --data_path REVISITED`."""

import sys

from dino.cli.retrieval import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
