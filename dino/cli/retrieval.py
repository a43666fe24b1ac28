"""`dino retrieval`: find the images of the same landmark."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.evaluation.config import RetrievalConfig

ABOUT = Help(
    example=(
        "dino retrieval --data_path REVISITED --dataset roxford5k --pretrained_weights "
        "checkpoint.pth"
    ),
    required=("data_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Score the weights.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(RetrievalConfig, argv, ABOUT)

    from dino.evaluation.retrieval.landmarks import evaluate_retrieval

    with open_session(config) as run:
        evaluate_retrieval(config, run)
