"""Retrieval score of a frozen backbone: `python eval_image_retrieval.py --data_path REVISITED`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, open_session
from dino.evaluation.config import RetrievalConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Score the weights."""
    options = parse(RetrievalConfig, argv)

    from dino.evaluation.retrieval import evaluate_retrieval

    with open_session(options) as run:
        evaluate_retrieval(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
