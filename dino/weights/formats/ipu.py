"""Checkpoints of the published IPU code: names, and `dino convert IN OUT --to ipu`, both ways."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dino.errors import CheckpointError
from dino.weights.config import IpuCheckpointConfig
from dino.weights.formats import Contents, Format

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

NETWORKS = ("student", "teacher")
LONGEST_REASON = 200  # characters of an error in the file
# Raised by entries of other types or shapes.
BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, RuntimeError)


def is_ipu(tensors: Any) -> bool:
    """Whether the names are the IPU port's: two networks, whose last layers have two halves."""
    return isinstance(tensors, Mapping) and any(
        str(name).startswith(f"{network}_head.last_layer1.")
        for name in tensors
        for network in NETWORKS
    )


def split_ipu(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split the two networks of the IPU port, with heads under `head.`.

    Tensors of neither network are kept in both. The result is empty for names of other projects.
    """
    if not is_ipu(tensors):
        return {}
    prefixes = tuple(f"{network}{part}." for network in NETWORKS for part in ("", "_head"))
    return {
        network: {
            name.removeprefix(f"{network}.").replace(f"{network}_head.", "head."): tensor
            for name, tensor in tensors.items()
            if name.startswith((f"{network}.", f"{network}_head.")) or not name.startswith(prefixes)
        }
        for network in NETWORKS
    }


def name_kind(contents: Contents) -> str:
    """Name a checkpoint of the IPU port."""
    return "checkpoint of the IPU port" if is_ipu(contents.state.get("model")) else ""


def convert_checkpoint(config: IpuCheckpointConfig) -> None:
    """Convert a checkpoint. The input file determines the direction.

    Raises:
        OptionError: A file is not named, or cannot be written.
        CheckpointError: The file has neither form, or cannot be read.
    """
    from dino import checkpoint
    from dino.weights.ipu_checkpoint import is_published, read_published, write_published
    from dino.weights.plain import name_files
    from dino.weights.validate import validate

    source, target = name_files(config.files)
    state = validate(checkpoint.load_file(source), source)
    theirs = is_published(state)
    try:
        converted = read_published(state) if theirs else write_published(state)
    except BROKEN as error:
        reason = textwrap.shorten(repr(error), LONGEST_REASON, placeholder=" ...")
        raise CheckpointError(f"{source} is damaged inside: {reason}") from error
    checkpoint.save_file(target, converted)
    logger.info(
        "%s: %s, of the other form in %s",
        target,
        "ours" if theirs else "of the published IPU code",
        source,
    )


FORMAT = Format(
    rank=3,
    split=split_ipu,
    keys=("model",),
    kind=name_kind,
    config=IpuCheckpointConfig,
    run=convert_checkpoint,
)
