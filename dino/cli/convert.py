"""`dino convert`: convert weights to or from another project's format."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

from dino.cli.options import parse, positional_to_flags
from dino.cli.session import set_up_logging
from dino.errors import OptionError
from dino.weights.config import ConversionConfig
from dino.weights.formats import list_converters

USAGE = """\
usage: dino convert IN OUT --to {{{forms}}} [flags]

IN is a file of any format. OUT has the format that --to names. If OUT ends in .pth, IN is in that
format and OUT is in this project's.

example:
  dino convert checkpoint.pth out --to huggingface

dino convert --to FORM --help lists its flags
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Convert to or from the format that `--to` names.

    Raises:
        OptionError: `--to` names no known format.
        DinoError: What the conversion raises.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    form, rest = _take_form(words)
    known = list_converters()
    if form is None and {"--help", "-h"} & set(rest):
        sys.stdout.write(USAGE.format(forms=",".join(known)))
        return
    if form is None or form not in known:
        raise OptionError(
            f"--to must be one of {', '.join(known)} (got {form})",
            remedy="OUT.pth is this project's form",
        )
    convert_to(form, rest)


def _take_form(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the word after --to, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--to", nargs="?")
    options, rest = parser.parse_known_args(list(words))
    return options.to, rest


def convert_to(name: str, argv: Sequence[str] | None = None) -> None:
    """Convert to or from the format of that name.

    Raises:
        DinoError: The weights cannot be read or written, or the format cannot hold them.
    """
    form = list_converters()[name]
    source = "--pretrained_weights" if issubclass(form.config, ConversionConfig) else "--weights"
    config: Any = parse(form.config, positional_to_flags(argv, source, "--output"))

    from dino.weights.convert import convert

    set_up_logging()
    form.run(config) if form.run else convert(config, form, getattr(config, "layer", None))


convert_huggingface = functools.partial(convert_to, "huggingface")
convert_timm = functools.partial(convert_to, "timm")
convert_paddle = functools.partial(convert_to, "paddle")
convert_onnx = functools.partial(convert_to, "onnx")
convert_ipu = functools.partial(convert_to, "ipu")
