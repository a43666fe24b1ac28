"""Copy detection score of a frozen backbone: `python eval_copy_detection.py --data_path COPYDAYS`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.errors import exit_code
from dino.evaluation.config import CopyDetectionConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Score the weights."""
    options = parse(CopyDetectionConfig, argv)

    from dino.evaluation.copy_detection import evaluate_copy_detection
    from dino.runtime.context import open_run

    with open_run(options.device, options.launch) as run:
        evaluate_copy_detection(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
