"""`dino copy-detection`: find the originals of edited copies."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.evaluation.config import CopyDetectionConfig

ABOUT = Help(
    example="dino copy-detection --data_path COPYDAYS --pretrained_weights checkpoint.pth",
    required=("data_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Score the weights.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(CopyDetectionConfig, argv, ABOUT)

    from dino.evaluation.retrieval.copy_detection import evaluate_copy_detection

    with open_session(config) as run:
        evaluate_copy_detection(config, run)
