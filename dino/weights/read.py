"""Read weights of any format into one form: a dictionary of networks, options and tensors.

Each format is asked (`dino.weights.formats`). A path that no format claims is read as safetensors
or torch, and its content may have any format. Nothing is executed: torch files are read with the
safe unpickler, and safetensors hold no code.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dino import checkpoint, stored
from dino.errors import WeightsError
from dino.plain_pickle.torch_file import is_safetensors
from dino.weights.formats import Format, list_formats
from dino.weights.safetensors_file import STATE_DICT, read_safetensors
from dino.weights.validate import validate

logger = logging.getLogger(__name__)

SAFETENSORS = ".safetensors"
WHOLE = "weights"  # name of a network that is a whole file
LONGEST_LIST = 300  # characters of the list of a file's keys


def read_weights(word: str) -> dict[str, Any]:
    """Read the weights that `pretrained_weights` or `init_from` names.

    Args:
        word: A checkpoint or weights file of torch, `.safetensors`, `.pdparams`, the folder of a
            training run, a Hugging Face folder, `hub:NAME` or `timm:NAME`.

    Returns:
        The contents of the file. A single unnamed network is at the top level or under
        `state_dict`. Facts about it are under `args` and `normalisation`, as in our checkpoints.

    Raises:
        CheckpointError: The file is missing, damaged, or holds more than tensors and plain values.
        WeightsError: The name is unknown, or the download fails.
    """
    newest = Path(word) / checkpoint.LATEST
    word = str(newest) if newest.is_file() else word
    claiming = find_format(word)
    if claiming and claiming.read:
        return validate(claiming.read(word), word)
    path = Path(word)
    by_safetensors = path.suffix == SAFETENSORS or is_safetensors(path)
    return validate(read_safetensors(path) if by_safetensors else checkpoint.load_file(path), word)


def find_format(word: str) -> Format | None:
    """Find the format that claims a word by prefix or path; None if only the content can tell."""
    formats = list_formats().values()
    named = next((form for form in formats if form.prefix and word.startswith(form.prefix)), None)
    return named or next((form for form in formats if form.detect(Path(word))), None)


def is_name(word: str) -> bool:
    """Whether a word names weights by a format's prefix, such as `timm:NAME`, and is not a path."""
    return any(form.prefix and word.startswith(form.prefix) for form in list_formats().values())


def select_network(state: Mapping[str, Any], key: str, path: Path | str) -> Mapping[str, Tensor]:
    """Select one network: `state[key]`, the key of another project, or the file itself.

    Only the teacher, the default, is also searched under the keys of other projects.

    Raises:
        WeightsError: The network is not in the file.
    """
    found = _find_network(state, key)
    if found is None:
        held = textwrap.shorten(", ".join(map(str, state)), LONGEST_LIST, placeholder=" ...")
        raise WeightsError(
            f"{path} has no network {key!r}",
            remedy=f"it holds {held}: set or drop `checkpoint_key`",
        )
    name, network = found
    names = list(list_networks(state))
    if len(names) > 1:
        logger.info("%s holds the networks %s: %s is used", path, ", ".join(names), name)
    return network


def _find_network(state: Mapping[str, Any], key: str) -> tuple[str, Mapping[str, Tensor]] | None:
    """Find a network and its name in the file."""
    network = state.get(key)
    if isinstance(network, Mapping):
        return key, network
    others = (STATE_DICT, *(name for form in list_formats().values() for name in form.keys))
    is_named = key not in ("teacher", *others)
    for name, held in [*((name, state.get(name)) for name in others), (WHOLE, state)]:
        if isinstance(held, Mapping) and (name != WHOLE or (held and _holds_tensors(held))):
            networks = split_networks(held)
            if key in networks:
                return key, networks[key]
            if not is_named:
                return next(iter(networks.items()), (name, held))
    return None


def list_networks(state: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
    """List every dictionary of tensors in a file by its name, or the file itself as `weights`."""
    networks: dict[str, Mapping[str, Tensor]] = {}
    for name, value in state.items():
        if name != "dino_loss" and isinstance(value, Mapping) and value and _holds_tensors(value):
            networks |= split_networks(value) or {name: value}
    if networks or not (state and _holds_tensors(state)):
        return networks
    return dict(split_networks(state)) or {WHOLE: state}


def _holds_tensors(values: Mapping[str, Any]) -> bool:
    return all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in values.items()
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
