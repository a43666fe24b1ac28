"""Weights of one project in the form of another: one command for each project."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dino.cli.options import name_places, parse
from dino.cli.session import set_up_logging
from dino.errors import OptionError
from dino.models.config import LayerConfig
from dino.weights.config import ConversionConfig, IpuCheckpointConfig

if TYPE_CHECKING:
    from dino.weights.convert import Form

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig(ConversionConfig):
    """Convert weights between this project and the transformers library (ViTModel).

    python -m dino.interop.huggingface IN FOLDER, or FOLDER OUT.pth
    """


@dataclass(frozen=True, kw_only=True)
class TimmConfig(ConversionConfig):
    """Convert weights between this project and timm.

    python -m dino.interop.timm IN OUT.safetensors, or timm:NAME OUT.pth
    """


@dataclass(frozen=True, kw_only=True)
class PaddleConfig(ConversionConfig):
    """Convert weights between this project and Paddle's PASSL, with a linear layer where there is one.

    python -m dino.interop.paddle IN.pdparams OUT.pth, or IN OUT.pdparams
    """

    layer: LayerConfig = LayerConfig()


@dataclass(frozen=True, kw_only=True)
class OnnxConfig(ConversionConfig):
    """Write a backbone as an ONNX graph: images of one size, any number of them, to features.

    python -m dino.interop.onnx IN OUT.onnx, or --output model.onnx with flags
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Convert to the form, or from it, that `--to` names.

    Raises:
        OptionError: It names none.
        DinoError: What the conversion raises.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    form, rest = _take_form(words)
    if form is None and {"--help", "-h"} & set(rest):
        sys.stdout.write(USAGE)
        return
    if form is None or form not in FORMS:
        raise OptionError(
            f"--to must be one of {', '.join(FORMS)} (got {form})", remedy="OUT.pth is this project's form"
        )
    FORMS[form](rest)


def _take_form(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The word behind --to, and the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--to", nargs="?")
    found, rest = parser.parse_known_args(list(words))
    return found.to, rest


def convert_huggingface(argv: Sequence[str] | None = None) -> None:
    """Convert from or to a folder of the transformers library.

    Raises:
        DinoError: The weights cannot be read, are no vision transformer's, or cannot be written.
    """
    _convert(HuggingFaceConfig, "huggingface", argv)


def convert_timm(argv: Sequence[str] | None = None) -> None:
    """Convert from or to timm's form.

    Raises:
        DinoError: The weights cannot be read, timm has no such network, or they cannot be written.
    """
    _convert(TimmConfig, "timm", argv)


def convert_paddle(argv: Sequence[str] | None = None) -> None:
    """Convert from or to PASSL's form; no Paddle is needed.

    Raises:
        DinoError: The weights cannot be read, are no vision transformer's, or cannot be written.
    """
    _convert(PaddleConfig, "paddle", argv)


def _convert(config: type[ConversionConfig], name: str, argv: Sequence[str] | None) -> None:
    options = parse(config, name_places(argv, "--pretrained_weights", "--output"))

    from dino.weights.convert import convert

    set_up_logging()
    form: Form = importlib.import_module(f"dino.weights.formats.{name}").FORM
    convert(options, form, getattr(options, "layer", None))


def convert_onnx(argv: Sequence[str] | None = None) -> None:
    """Write a backbone as an ONNX graph.

    Raises:
        DinoError: The weights do not fit, a library is missing, or the file cannot be written.
    """
    options = parse(OnnxConfig, name_places(argv, "--pretrained_weights", "--output"))

    from dino.weights.formats.onnx import write_onnx

    set_up_logging()
    write_onnx(options)


def convert_ipu(argv: Sequence[str] | None = None) -> None:
    """Convert a checkpoint of the published IPU code, in the direction that the file itself tells.

    Raises:
        DinoError: It is neither, or a file cannot be read or written.
    """
    options = parse(IpuCheckpointConfig, name_places(argv, "--weights", "--output"))

    from dino import checkpoint
    from dino.models.arrival import admit
    from dino.weights.formats.ipu import is_published, read_published, write_published
    from dino.weights.plain import name_files

    set_up_logging()
    source, target = name_files(options.files)
    state = admit(checkpoint.load_file(source), source)
    theirs = is_published(state)
    checkpoint.save_file(target, read_published(state) if theirs else write_published(state))
    logger.info("%s: %s, of the other form in %s", target, "ours" if theirs else "of the published IPU code", source)


FORMS: Mapping[str, Callable[[Sequence[str] | None], None]] = {
    "huggingface": convert_huggingface,
    "timm": convert_timm,
    "paddle": convert_paddle,
    "onnx": convert_onnx,
    "ipu": convert_ipu,
}
USAGE = f"""\
usage: dino convert IN OUT --to {{{",".join(FORMS)}}} [flags]

IN is a file of any form; OUT is of the form that --to names or, as OUT.pth, this project's from that form.

example:
  dino convert checkpoint.pth out --to huggingface

dino convert --to FORM --help lists its flags
"""
