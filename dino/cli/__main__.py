"""The command `dino`: the first word names the command, the flags after it say how to run it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from dino import __version__
from dino.cli.session import exit_code
from dino.errors import OptionError, nearest

COMMANDS = {  # in the order in which they are listed
    "pretrain": "pre-train a backbone with DINO",
    "demo": "pre-train on the embedded data set, score the result, show it on a page",
    "knn": "score a frozen backbone with weighted k-NN",
    "linear": "train and score a linear classifier on a frozen backbone",
    "copy-detection": "score copy detection (Copydays)",
    "retrieval": "score image retrieval (revisited Oxford and Paris)",
    "video-segmentation": "segment videos by label propagation (DAVIS 2017)",
    "ipace-segmentation": "segment driving runs by label propagation",
    "segmentation-metrics": "score predicted label maps",
    "look": "show on one page what a backbone makes of a set of images",
    "attention": "draw attention maps of images",
    "video": "draw attention maps of a video",
    "embed": "write the features of images to a file",
    "convert": "convert weights to or from another project's format",
    "extract-weights": "extract the backbone from a checkpoint",
    "inspect": "describe a weights file",
    "check": "list corrupt, tiny, odd and duplicate images",
    "pack": "pack a folder of images into tar shards",
    "build-native": "compile the fast crops of the loaders",
    "doctor": "report whether a device can run here, and if not, why",
    "verify": "test which modes of a device compute correct numbers",
    "align": "compare training steps on two devices",
    "submit": "submit a pre-training run to Slurm",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names.

    Raises:
        OptionError: The command is missing or unknown.
        DinoError: What the command raises.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words else "--help"
    if name in {"--version", "-V"}:
        sys.stdout.write(f"dino {__version__}\n")
    elif name in {"--help", "-h", "help"}:
        sys.stdout.write(describe())
    elif name not in COMMANDS:
        raise OptionError(f"unknown command {name!r}: {nearest(name, list(COMMANDS))}")
    else:
        # --help shows it, and loader processes that import __main__ again read it.
        sys.argv = [f"dino {name}", *words]
        importlib.import_module(f"dino.cli.{name.replace('-', '_')}").main(words)


def describe() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dino COMMAND [flags]",
            "",
            *lines,
            "",
            "dino COMMAND --help lists its flags; dino --version",
            "",
        ]
    )


def run() -> int:
    """Run the console script; return the exit code."""
    return exit_code(main)


if __name__ == "__main__":
    sys.exit(run())
