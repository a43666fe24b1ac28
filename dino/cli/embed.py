"""`dino embed`: write the features of images to one file."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.evaluation.config import FeatureFileConfig

ABOUT = Help(
    example=(
        "dino embed --data_path photos --output features.npz --pretrained_weights checkpoint.pth"
    ),
    required=("data_path", "output"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the features and write the file.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(FeatureFileConfig, argv, ABOUT)

    from dino.evaluation.export.feature_file import write_feature_file

    with open_session(config) as run:
        write_feature_file(config, run)
