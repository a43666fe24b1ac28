"""`dino video`: draw attention maps of a video."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.visualization.config import AttentionVideoConfig

ABOUT = Help(
    example="dino video --input_path video.mp4 --pretrained_weights checkpoint.pth",
    required=("input_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the video.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(AttentionVideoConfig, argv, ABOUT)

    from dino.visualization.attention_video import generate_video

    with open_session(config) as run:
        generate_video(config, run)
