"""Score a frozen backbone with a linear probe.

python eval_linear.py --data_path DATA --pretrained_weights checkpoint.pth
"""

import sys

from dino.cli.linear import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
