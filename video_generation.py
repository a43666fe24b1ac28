"""Draw attention as a video.

python video_generation.py --input_path video.mp4 --pretrained_weights checkpoint.pth
"""

import sys

from dino.cli.session import exit_code
from dino.cli.video import main

if __name__ == "__main__":
    sys.exit(exit_code(main))
