"""DAVIS 2017 by label propagation: `python eval_video_segmentation.py --data_path DAVIS --pretrained_weights FILE`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, open_session
from dino.evaluation.config import DavisConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the validation split."""
    options = parse(DavisConfig, argv)

    from dino.evaluation.segmentation import segment_davis

    with open_session(options) as run:
        segment_davis(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
