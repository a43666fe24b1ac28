"""`dino linear`: train and score a linear classifier on a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse_command
from dino.cli.parser import Help
from dino.cli.session import open_session
from dino.config import as_recipe
from dino.evaluation.config import LinearConfig

ABOUT = Help(
    example=(
        "dino linear --data_path DATA --output_dir output/linear --pretrained_weights "
        "checkpoint.pth"
    ),
    required=("data_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Train or score the linear layer."""
    config, given, _ = parse_command(LinearConfig, argv, about=ABOUT)

    from dino.evaluation.linear.probe import evaluate_linear

    with open_session(config) as run:
        evaluate_linear(config, run, recipe=as_recipe(config, given))
