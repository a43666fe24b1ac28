"""The files of a Hugging Face folder: JSON texts, and weights as one file, shards or a variant."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dino.errors import CheckpointError
from dino.files import read_bounded
from dino.stored import join_unique
from dino.weights.read import read_weights, select_network

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MOST_BYTES = 1 << 24  # of a text: the names of 100,000 classes or tensors fit


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Read the weights of a folder: one file, several with an index, or the only variant.

    Raises:
        CheckpointError: There are none, or they are damaged.
    """
    networks = (
        select_network(read_weights(str(file)), "state_dict", file) for file in _find_files(path)
    )
    return join_unique(pair for network in networks for pair in network.items())


def _find_files(path: Path) -> list[Path]:
    for name in WEIGHTS:
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            return [path / name]
        if index.is_file():
            return [path / name for name in _list_shards(index)]
    stems = [name.split(".") for name in WEIGHTS]
    variants = sorted(file for stem, end in stems for file in path.glob(f"{stem}.*.{end}"))
    if not variants:
        raise CheckpointError(f"{path} holds none of {', '.join(WEIGHTS)}")
    if len(variants) > 1:
        names = ", ".join(file.name for file in variants)
        raise CheckpointError(f"{path} holds several variants", remedy=f"keep one of {names}")
    logger.info("%s: %s is used", path, variants[0].name)
    return variants


def _list_shards(index: Path) -> list[str]:
    places = read_json(index).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index} must hold a weight_map from names to files")
    outside = sorted(name for name in names if Path(name).name != name)
    if outside:
        raise CheckpointError(f"{index} must name files of this folder (got {outside[0]!r})")
    return sorted(set(names))


def read_json(path: Path) -> dict[str, Any]:
    """Read a text that holds a dictionary.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        content = json.loads(read_bounded(path, MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a dictionary (got {type(content).__name__})")
    return content
