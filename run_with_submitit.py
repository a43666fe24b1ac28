"""Submit main_dino.py with its flags: `python run_with_submitit.py --nodes 2 --ngpus 8 --data_path DATA ...`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import main_dino
from dino.cli.options import parse_command
from dino.cli.session import exit_code
from dino.cli.submission import SubmitConfig, submit


def main(argv: Sequence[str] | None = None) -> None:
    """Check the whole command line, then hand the run to the cluster."""
    options, given, _ = parse_command(SubmitConfig, argv)
    sys.stdout.write(f"{submit(options, given, main_dino.main, Path(__file__).resolve().parent)}\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
