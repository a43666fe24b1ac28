"""Files of Paddle (`.pdparams`), read without Paddle and without unpickling: a dictionary of names to arrays.

`paddle.save` writes one plain pickle of numpy arrays, which `dino.plain_pickle` reads. This module knows what Paddle
means by it: tables of names, tensors in pieces, and bfloat16 stored as uint16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino import plain_pickle
from dino.errors import CheckpointError

NAME_TABLE = "StructuredToParameterName@@"  # Paddle's internal names; nothing needs them
SLICES = "UnpackBigParamInfor@@"  # how tensors over 1 GiB were cut (pickle protocols 2 and 3)
DTYPES = {"f2", "f4", "f8", "u1", "u2", "i1", "i2", "i4", "i8", "b1"}
BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError)


def read_paddle(path: Path) -> dict[str, Any]:
    """Read a `.pdparams` file that is a pickle.

    Returns:
        Names to tensors, in the dictionary or in one of its dictionaries, and plain values. Numbers of
        bfloat16, which Paddle stores as uint16, have their own dtype.

    Raises:
        CheckpointError: The file is missing or damaged, or holds anything but arrays and plain values.
    """
    try:
        content = plain_pickle.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, and a dictionary of arrays is wanted")
        return _translate(content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except BROKEN as error:
        raise CheckpointError(f"{path} is damaged or no file of Paddle's weights: {error}") from error


def _translate(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Arrays to tensors; a network may lie one dictionary deeper."""
    found = {name: _unwrap(value) for name, value in content.items() if name not in {NAME_TABLE, SLICES}}
    for name, cut in content.get(SLICES, {}).items():
        pieces = [_check_array(piece, found.pop(_check_name(piece))) for piece in cut["slices"]]
        found[name] = np.concatenate(pieces).reshape(tuple(cut["OriginShape"]))
    return {_check_name(name): _translate_value(name, value) for name, value in found.items()}


def _translate_value(name: str, value: Any) -> Any:
    if _is_array(value):
        return _to_tensor(name, value)
    if isinstance(value, dict):
        inner = {_check_name(part): _unwrap(content) for part, content in value.items()}
        return {part: _to_tensor(part, one) if _is_array(one) else one for part, one in inner.items()}
    return value


def _unwrap(value: Any) -> Any:
    """A tensor that was saved within another object is a pair of its name and array."""
    is_pair = isinstance(value, tuple) and len(value) == 2
    return value[1] if is_pair and _is_array(value[1]) else value


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"it has a {type(name).__name__} where a str belongs")
    return name


def _check_array(name: Any, array: Any) -> np.ndarray:
    """Before arrays are joined or converted: texts of unlike lengths would be padded without limit."""
    found: np.ndarray = np.asarray(array) if _is_array(array) else np.empty(0, object)
    kind = found.dtype.str.lstrip("<|")
    if kind not in DTYPES:
        raise ValueError(f"the array {name} has the dtype {kind!r}, and little-endian numbers are read")
    return found


def _to_tensor(name: str, value: Any) -> Tensor:
    array = _check_array(name, value)
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
