"""A checkpoint's backbone by itself: `python extract_weights.py --weights checkpoint.pth --output vit_model.pth`."""

import sys
from collections.abc import Sequence

from dino.errors import exit_code
from dino.flags import ExtractOptions
from dino.options import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Write it."""
    options = parse(ExtractOptions, argv)

    from dino.interop.plain import extract_backbone
    from dino.runtime.context import set_up_logging

    set_up_logging()
    extract_backbone(options)


if __name__ == "__main__":
    sys.exit(exit_code(main))
