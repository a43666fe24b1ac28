"""DAVIS 2017 by label propagation: `python eval_video_segmentation.py --data_path DAVIS --pretrained_weights FILE`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.errors import exit_code
from dino.evaluation.config import DavisConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the validation split."""
    options = parse(DavisConfig, argv)

    from dino.evaluation.segmentation import segment_davis
    from dino.runtime.context import open_run

    with open_run(options.device, options.launch) as run:
        segment_davis(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
