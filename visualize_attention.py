"""Attention maps: `python visualize_attention.py --image_path image.jpg --pretrained_weights checkpoint.pth`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.errors import exit_code
from dino.visualization.config import AttentionConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the maps."""
    options = parse(AttentionConfig, argv)

    from dino.runtime.context import open_run
    from dino.visualization.attention import visualize_attention

    with open_run(options.device, options.launch) as run:
        visualize_attention(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
