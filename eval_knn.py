"""k-NN score of a frozen backbone: `python eval_knn.py --data_path DATA --pretrained_weights checkpoint.pth`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, open_session
from dino.evaluation.config import KnnConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Score the weights."""
    options = parse(KnnConfig, argv)

    from dino.evaluation.knn import evaluate_knn

    with open_session(options) as run:
        evaluate_knn(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
