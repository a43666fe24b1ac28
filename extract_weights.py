"""A checkpoint's backbone by itself: `python extract_weights.py --weights checkpoint.pth --output vit_model.pth`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, set_up_logging
from dino.weights.config import ExtractConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Write it."""
    options = parse(ExtractConfig, argv)

    from dino.weights.plain import extract_backbone

    set_up_logging()
    extract_backbone(options)


if __name__ == "__main__":
    sys.exit(exit_code(main))
