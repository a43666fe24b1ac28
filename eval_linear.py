"""Linear probe of a frozen backbone: `python eval_linear.py --data_path DATA --pretrained_weights checkpoint.pth`."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse_command
from dino.config import as_recipe
from dino.errors import exit_code
from dino.evaluation.config import LinearConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Train or score the linear layer."""
    options, given, _ = parse_command(LinearConfig, argv)

    from dino.evaluation.linear import evaluate_linear
    from dino.runtime.context import open_run

    with open_run(options.device, options.launch) as run:
        evaluate_linear(options, run, recipe=as_recipe(options, given))


if __name__ == "__main__":
    sys.exit(exit_code(main))
