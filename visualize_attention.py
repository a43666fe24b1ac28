"""Attention maps: `python visualize_attention.py --image_path image.jpg --pretrained_weights checkpoint.pth`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, open_session
from dino.visualization.config import AttentionConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the maps."""
    options = parse(AttentionConfig, argv)

    from dino.visualization.attention import visualize_attention

    with open_session(options) as run:
        visualize_attention(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
