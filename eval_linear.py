"""Linear probe of a frozen backbone: `python eval_linear.py --data_path DATA --pretrained_weights checkpoint.pth`."""

import sys
from collections.abc import Sequence

from dino.errors import exit_code
from dino.flags import LinearOptions
from dino.options import parse


def main(argv: Sequence[str] | None = None) -> None:
    """Train or score the linear layer."""
    options = parse(LinearOptions, argv)

    from dino.evaluation.linear import evaluate_linear
    from dino.runtime.context import open_run

    with open_run(options.device, options.launch) as run:
        evaluate_linear(options, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
