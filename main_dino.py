"""Pre-train with DINO: `python main_dino.py --data_path demo --output_dir ./output/demo`; `--help` lists the flags."""

import sys

from dino.cli.pretrain import main
from dino.cli.session import exit_code

if __name__ == "__main__":
    sys.exit(exit_code(main))
