"""The command `dino`: one word says what to do, the flags behind it how."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from dino import __version__
from dino.cli.session import exit_code
from dino.errors import OptionError, nearest

COMMANDS = {  # in the order in which they are listed
    "pretrain": "pre-train a backbone with DINO",
    "demo": "pre-train on the embedded data set, score it, draw attention maps",
    "knn": "score a frozen backbone by weighted k-NN",
    "linear": "train and score a linear classifier on a frozen backbone",
    "copy-detection": "score copy detection (Copydays)",
    "retrieval": "score image retrieval (revisited Oxford and Paris)",
    "video-segmentation": "segment videos by label propagation (DAVIS 2017)",
    "ipace-segmentation": "segment driving runs by label propagation",
    "segmentation-metrics": "score predicted label maps",
    "attention": "draw attention maps of images",
    "video": "draw attention maps of a video",
    "embed": "write the features of images to a file",
    "convert": "convert weights to another project's form, or from it",
    "extract-weights": "write a checkpoint's backbone by itself",
    "inspect": "say what a weights file holds",
    "check": "name corrupt, tiny, odd and duplicate images",
    "pack": "pack a folder of images into tar shards",
    "doctor": "say whether a device can run here, and why not",
    "verify": "prove which modes of a device compute right numbers",
    "align": "compare training steps on two devices",
    "submit": "submit a pre-training run to Slurm",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names.

    Raises:
        OptionError: No or an unknown command.
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
        sys.argv = [
            f"dino {name}",
            *words,
        ]  # what --help shows, and a loader process that imports __main__ again
        importlib.import_module(f"dino.cli.{name.replace('-', '_')}").main(words)


def describe() -> str:
    """The list of commands."""
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
    """The console script; gives the exit code."""
    return exit_code(main)


if __name__ == "__main__":
    sys.exit(run())
