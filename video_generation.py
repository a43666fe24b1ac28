"""Attention as a video: `python video_generation.py --input_path video.mp4 --pretrained_weights checkpoint.pth`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, open_session
from dino.visualization.config import AttentionVideoConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Make the video."""
    options = parse(AttentionVideoConfig, argv)

    from dino.visualization.attention_video import generate_video

    with open_session(options) as run:
        generate_video(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
