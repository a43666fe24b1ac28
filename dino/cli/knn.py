"""`dino knn`: score a frozen backbone with weighted k-NN."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.evaluation.config import KnnConfig

ABOUT = Help(
    example="dino knn --data_path DATA --pretrained_weights checkpoint.pth",
    required=("data_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Score the weights.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(KnnConfig, argv, ABOUT)

    from dino.evaluation.knn import evaluate_knn

    with open_session(config) as run:
        evaluate_knn(config, run)
