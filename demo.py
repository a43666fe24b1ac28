"""`make demo`: pre-train a small ViT on the built-in data set, score it by k-NN, draw attention."""

import sys

from dino.cli.demo import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
