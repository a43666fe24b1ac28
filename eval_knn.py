"""k-NN score of a frozen backbone: `python eval_knn.py --data_path DATA --pretrained_weights checkpoint.pth`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.errors import exit_code
from dino.evaluation.config import KnnConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Score the weights."""
    options = parse(KnnConfig, argv)

    from dino.evaluation.knn import evaluate_knn
    from dino.runtime.context import open_run

    with open_run(options.device, options.launch) as run:
        evaluate_knn(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
