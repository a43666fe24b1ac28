"""Draw the attention maps of an image.

python visualize_attention.py --image_path image.jpg --pretrained_weights checkpoint.pth
"""

import sys

from dino.cli.attention import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
