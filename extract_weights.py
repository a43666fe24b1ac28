"""Extract the backbone from a checkpoint.

python extract_weights.py --weights checkpoint.pth --output vit_model.pth
"""

import sys

from dino.cli.extract_weights import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
