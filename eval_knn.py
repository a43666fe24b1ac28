"""Score a frozen backbone by k-NN.

python eval_knn.py --data_path DATA --pretrained_weights checkpoint.pth
"""

import sys

from dino.cli.knn import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
