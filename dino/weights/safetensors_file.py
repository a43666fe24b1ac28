"""A safetensors file: tensors, and what this project stores beside them as JSON in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from dino.errors import CheckpointError
from dino.files import atomic_write
from dino.plain_pickle.torch_file import name_other_kind

KEY = "dino"  # of the metadata
ABOUT = ("epoch", "args", "normalisation")  # what is stored under it, named as in a checkpoint
STATE_DICT = "state_dict"  # the key under which files of many projects hold their network


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors of one network, whole or not at all, and flush them to disk.

    Args:
        path: The file.
        tensors: In host memory. Each has memory of its own.
        about: Plain values under the names of `ABOUT`.

    Raises:
        CheckpointError: The file cannot be written; an older file is untouched.
    """
    metadata = {"format": "pt", KEY: json.dumps(dict(about))}
    named = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            file.write(save(named, metadata))  # save_file would leave it readable by its owner only
            file.flush()
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written ({error})") from error


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file.

    Returns:
        The tensors under `state_dict`. For a file of `save_safetensors` they are under `teacher`,
        with what was stored about them beside, as in a checkpoint.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get(KEY)
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, SafetensorError) as error:
        reason = name_other_kind(path) or str(error)
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {reason}") from error
    return (
        {STATE_DICT: tensors}
        if stored is None
        else _read_about(stored, path) | {"teacher": tensors}
    )


def _read_about(stored: str, path: Path) -> dict[str, Any]:
    try:
        about = json.loads(stored)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise CheckpointError(f"{path}: {KEY!r} in its metadata must be a dictionary as JSON")
    return {name: about[name] for name in ABOUT if name in about}
