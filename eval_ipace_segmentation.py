"""Score label propagation on driving runs.

python eval_ipace_segmentation.py --data_path RUNS --pretrained_weights FILE
"""

import sys

from dino.cli.ipace_segmentation import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
