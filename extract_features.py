"""Extract the features of images to one file.

python extract_features.py --data_path IMAGES --output features.npz
"""

import sys

from dino.cli.embed import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
