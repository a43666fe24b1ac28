"""Pre-train with DINO; `--help` lists the flags.

python main_dino.py --data_path demo --output_dir ./output/demo
"""

import sys

from dino.cli.pretrain import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
