"""Score label propagation on DAVIS 2017.

python eval_video_segmentation.py --data_path DAVIS --pretrained_weights FILE
"""

import sys

from dino.cli.session import exit_code
from dino.cli.video_segmentation import main

if __name__ == "__main__":
    sys.exit(exit_code(main))
