"""`dino extract-weights`: extract the backbone from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import set_up_logging
from dino.weights.config import ExtractConfig

ABOUT = Help(
    example="dino extract-weights --weights checkpoint.pth --output vit_model.pth",
    required=(
        "file_in",
        "file_out",
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the backbone to its own file."""
    config = parse(ExtractConfig, argv, ABOUT)

    from dino.weights.plain import extract_backbone

    set_up_logging()
    extract_backbone(config)
