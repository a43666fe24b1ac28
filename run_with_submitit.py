"""Submit main_dino.py with its flags to Slurm.

python run_with_submitit.py --nodes 2 --ngpus 8 --data_path DATA ...
"""

import sys

from dino.cli.session import exit_code
from dino.cli.submit import main

if __name__ == "__main__":
    sys.exit(exit_code(main))
