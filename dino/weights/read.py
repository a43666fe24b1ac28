"""Read weights of any format into one form: a dictionary of networks, options and tensors.

Each format is asked (`dino.weights.formats`). A path that no format claims is read as safetensors
or torch, and its content may have any format. Nothing is executed: torch files are read with the
safe unpickler, and safetensors hold no code.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from dino import checkpoint, stored
from dino.errors import CheckpointError, WeightsError
from dino.weights.formats import Format, list_formats
from dino.weights.validate import validate

STATE_DICT = "state_dict"  # the key under which files of many projects hold their network
SAFETENSORS = ".safetensors"
LONGEST_LIST = 300  # characters of the list of a file's keys


def read_weights(word: str) -> dict[str, Any]:
    """Read the weights that `pretrained_weights` or `init_from` names.

    Args:
        word: A checkpoint or weights file of torch, `.safetensors`, `.pdparams`, a Hugging Face
            folder, `hub:NAME` or `timm:NAME`.

    Returns:
        The contents of the file. A single unnamed network is at the top level or under
        `state_dict`. Facts about it are under `args` and `normalisation`, as in our checkpoints.

    Raises:
        CheckpointError: The file is missing, damaged, or holds more than tensors and plain values.
        WeightsError: The name is unknown, or the download fails.
    """
    claiming = find_format(word)
    if claiming and claiming.read:
        return validate(claiming.read(word), word)
    path = Path(word)
    return validate(
        read_safetensors(path) if path.suffix == SAFETENSORS else checkpoint.load_file(path), word
    )


def find_format(word: str) -> Format | None:
    """Find the format that claims a word by prefix or path; None if only the content can tell."""
    formats = list_formats().values()
    named = next((form for form in formats if form.prefix and word.startswith(form.prefix)), None)
    return named or next((form for form in formats if form.detect(Path(word))), None)


def is_name(word: str) -> bool:
    """Whether a word names weights by a format's prefix, such as `timm:NAME`, and is not a path."""
    return any(form.prefix and word.startswith(form.prefix) for form in list_formats().values())


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read the tensors of a safetensors file, under `state_dict`.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        return {STATE_DICT: load_safetensors(path)}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error


def select_network(state: Mapping[str, Any], key: str, path: Path | str) -> Mapping[str, Tensor]:
    """Select one network: `state[key]`, the key of another project, or the file itself.

    Only the teacher, the default, is also searched under the keys of other projects.

    Raises:
        WeightsError: The network is not in the file.
    """
    network = state.get(key)
    if isinstance(network, Mapping):
        return network
    others = (STATE_DICT, *(name for form in list_formats().values() for name in form.keys))
    is_named = key not in ("teacher", *others)
    for name in others:
        if isinstance(state.get(name), Mapping):
            networks = split_networks(state[name]) or ({} if is_named else {key: state[name]})
            if key in networks:
                return networks[key]
    if state and not is_named and all(isinstance(value, Tensor) for value in state.values()):
        return state
    held = textwrap.shorten(", ".join(map(str, state)), LONGEST_LIST, placeholder=" ...")
    raise WeightsError(
        f"{path} has no network {key!r}", remedy=f"it holds {held}: set or drop `checkpoint_key`"
    )


def split_networks(tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Tensor]]:
    """Split a dictionary in which a format keeps several networks. Empty for one network."""
    return next(filter(None, (form.split(tensors) for form in list_formats().values())), {})


def rename_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of one network from any format to our names. Unknown names stay.

    Raises:
        CheckpointError: A tensor is in the file under two names.
    """
    tensors = stored.strip_prefixes(tensors)
    candidates = (form.rename(tensors) for form in list_formats().values())
    return next((renamed for renamed in candidates if renamed is not None), tensors)
