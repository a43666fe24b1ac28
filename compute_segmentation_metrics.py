"""Score predicted label maps.

python compute_segmentation_metrics.py --dataset_path DAVIS --prediction_path OUT
"""

import sys

from dino.cli.segmentation_metrics import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
