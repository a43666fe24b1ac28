"""What `pretrained_weights` can name, read to one form: a dictionary of networks, options and tensors.

Each format is asked (`dino.weights.formats`); a file that none claims by its path is one of safetensors or of torch,
and what is in it is any format's. Nothing is executed: torch's files are read with its safe unpickler, safetensors
have no code in them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from dino import checkpoint
from dino.errors import CheckpointError, WeightsError
from dino.weights.formats import Format, list_formats
from dino.weights.validate import admit

STATE_DICT = "state_dict"  # where files of many projects hold their network
SAFETENSORS = ".safetensors"
LONGEST_LIST = 300  # characters of what a file holds


def read_weights(word: str) -> dict[str, Any]:
    """Read what `pretrained_weights` or `init_from` names.

    Args:
        word: A checkpoint or weights file of torch, `.safetensors`, `.pdparams`, a Hugging Face folder, `hub:NAME` or
            `timm:NAME`.

    Returns:
        What the file holds. Files that hold one network without saying which have it at the top or under
        `state_dict`, and what is known about it under `args` and `normalisation`, as our checkpoints do.

    Raises:
        CheckpointError: The file is missing or damaged, or holds more than tensors and plain values.
        WeightsError: No such name, or it cannot be downloaded.
    """
    claimed = find_format(word)
    if claimed and claimed.read:
        return admit(claimed.read(word), word)
    path = Path(word)
    return admit(
        read_safetensors(path) if path.suffix == SAFETENSORS else checkpoint.load_file(path), word
    )


def find_format(word: str) -> Format | None:
    """The format that claims a word by its prefix, else by the path that it is; None where its content has to tell."""
    formats = list_formats().values()
    named = next((each for each in formats if each.prefix and word.startswith(each.prefix)), None)
    return named or next((each for each in formats if each.detect(Path(word))), None)


def is_name(word: str) -> bool:
    """Whether a word names weights by a format's prefix, such as `timm:NAME`, and is no path."""
    return any(each.prefix and word.startswith(each.prefix) for each in list_formats().values())


def read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, under `state_dict`.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        return {STATE_DICT: load_safetensors(path)}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def select_network(state: Mapping[str, Any], key: str, path: Path | str) -> Mapping[str, Tensor]:
    """One network's tensors: `state[key]` of a checkpoint, what other projects call it, or the file itself.

    Only the teacher, which is what is meant where nothing is said, is looked for under other names.

    Raises:
        WeightsError: Neither.
    """
    found = state.get(key)
    if isinstance(found, Mapping):
        return found
    others = (STATE_DICT, *(name for each in list_formats().values() for name in each.keys))
    named = key not in ("teacher", *others)
    for name in others:
        if isinstance(state.get(name), Mapping):
            networks = split_networks(state[name]) or ({} if named else {key: state[name]})
            if key in networks:
                return networks[key]
    if state and not named and all(isinstance(value, Tensor) for value in state.values()):
        return state
    held = textwrap.shorten(", ".join(map(str, state)), LONGEST_LIST, placeholder=" ...")
    raise WeightsError(
        f"{path} has no network {key!r}", remedy=f"it holds {held}: set or drop `checkpoint_key`"
    )


def split_networks(tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
    """The networks that a format keeps in one dictionary of tensors; nothing where it is that of one."""
    return next(filter(None, (each.split(tensors) for each in list_formats().values())), {})


def rename_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one network under our names, whoever's they had; what we have no name for keeps its own.

    Raises:
        CheckpointError: One is there under two names.
    """
    tensors = checkpoint.strip_prefixes(tensors)
    renamed = (each.rename(tensors) for each in list_formats().values())
    return next((found for found in renamed if found is not None), tensors)
