"""`dino ipace-segmentation`: segment driving runs by label propagation."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.evaluation.config import DrivingConfig

ABOUT = Help(
    example=(
        "dino ipace-segmentation --data_path RUNS --output_dir out --pretrained_weights "
        "checkpoint.pth"
    ),
    required=("data_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the runs.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(DrivingConfig, argv, ABOUT)

    from dino.evaluation.video_segmentation.segment import segment_runs

    with open_session(config) as run:
        segment_runs(config, run)
