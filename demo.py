"""`make demo`: pre-train a small ViT on the embedded data set, score it by k-NN, draw what it attends to."""

import sys

from dino.cli.demo import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
