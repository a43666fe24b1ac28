"""`dino submit`: submit a pre-training run to a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import dino
from dino.cli import pretrain
from dino.cli.options import parse_command
from dino.cli.parser import Help
from dino.cli.submission import SubmitConfig, submit

ABOUT = Help(example="dino submit --nodes 2 --ngpus 8 --data_path DATA", required=("data_path",))


def main(argv: Sequence[str] | None = None) -> None:
    """Check the whole command line, then hand the run to the cluster.

    Raises:
        DinoError: The flags are wrong, or the cluster refuses the job.
    """
    config, given, _ = parse_command(SubmitConfig, argv, about=ABOUT)
    root = Path(dino.__file__).resolve().parents[1]
    sys.stdout.write(f"{submit(config, given, pretrain.main, root)}\n")
