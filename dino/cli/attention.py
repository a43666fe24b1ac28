"""`dino attention`: draw what a vision transformer attends to."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.visualization.config import AttentionConfig

ABOUT = Help(
    example="dino attention --image_path photo.jpg --pretrained_weights checkpoint.pth",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the maps.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(AttentionConfig, argv, ABOUT)

    from dino.visualization.attention import visualize_attention

    with open_session(config) as run:
        visualize_attention(config, run)
