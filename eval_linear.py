"""Linear probe of a frozen backbone: `python eval_linear.py --data_path DATA --pretrained_weights checkpoint.pth`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse_command
from dino.cli.session import exit_code, open_session
from dino.config import as_recipe
from dino.evaluation.config import LinearConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Train or score the linear layer."""
    options, given, _ = parse_command(LinearConfig, argv)

    from dino.evaluation.linear import evaluate_linear

    with open_session(options) as run:
        evaluate_linear(options, run, recipe=as_recipe(options, given))


if __name__ == "__main__":
    sys.exit(exit_code(main))
