"""Features of images in one file: `python extract_features.py --data_path IMAGES --output features.npz`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.session import exit_code, open_session
from dino.evaluation.config import FeatureFileConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Describe the images and write the file."""
    options = parse(FeatureFileConfig, argv)

    from dino.evaluation.feature_file import write_feature_file

    with open_session(options) as run:
        write_feature_file(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
