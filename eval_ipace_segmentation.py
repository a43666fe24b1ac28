"""Driving runs by label propagation: `python eval_ipace_segmentation.py --data_path RUNS --pretrained_weights FILE`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, open_session
from dino.evaluation.config import DrivingConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the runs."""
    options = parse(DrivingConfig, argv)

    from dino.evaluation.segmentation import segment_runs

    with open_session(options) as run:
        segment_runs(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
