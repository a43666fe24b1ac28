"""`dino video-segmentation`: segment DAVIS 2017 by label propagation."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.evaluation.config import DavisConfig

ABOUT = Help(
    example=(
        "dino video-segmentation --data_path DAVIS --output_dir out --pretrained_weights "
        "checkpoint.pth"
    ),
    required=("data_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the validation split.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(DavisConfig, argv, ABOUT)

    from dino.evaluation.video_segmentation.segment import segment_davis

    with open_session(config) as run:
        segment_davis(config, run)
