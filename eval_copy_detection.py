"""Copy detection score of a frozen backbone: `python eval_copy_detection.py --data_path COPYDAYS`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, open_session
from dino.evaluation.config import CopyDetectionConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Score the weights."""
    options = parse(CopyDetectionConfig, argv)

    from dino.evaluation.copy_detection import evaluate_copy_detection

    with open_session(options) as run:
        evaluate_copy_detection(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
