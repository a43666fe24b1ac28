"""PASSL's weights: `python -m dino.interop.paddle IN.pdparams OUT.pth`, or `IN OUT.pdparams`; no Paddle is needed.

`paddle.save` writes one plain pickle of numpy arrays, which `dino.plain_pickle` reads without unpickling. This module
knows what Paddle means by it: tables of names, tensors in pieces, bfloat16 stored as uint16, and matrices (in, out).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.errors import CheckpointError, WeightsError
from dino.models.config import LayerConfig
from dino.weights.config import ConversionConfig
from dino.weights.formats import Contents, Format

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dino.weights.network import Network

ENDING = ".pdparams"
NAME_TABLE = "StructuredToParameterName@@"  # Paddle's internal names; nothing needs them
SLICES = "UnpackBigParamInfor@@"  # how tensors over 1 GiB were cut (pickle protocols 2 and 3)
DTYPES = {"f2", "f4", "f8", "u1", "u2", "i1", "i2", "i4", "i8", "b1"}
BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError)
FORMATS = {
    "bfloat16",
    "float16",
    "float32",
    "float64",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
}
PROTOCOL = 4  # of the pickle; paddle.load takes 2 to 4


@dataclass(frozen=True, kw_only=True)
class PaddleConfig(ConversionConfig):
    """Convert weights between this project and Paddle's PASSL, with a linear layer where there is one.

    python -m dino.interop.paddle IN.pdparams OUT.pth, or IN OUT.pdparams
    """

    layer: LayerConfig = LayerConfig()


def name_kind(contents: Contents) -> str:
    """What a file of Paddle's is."""
    return "PASSL (Paddle)" if contents.word.endswith(ENDING) else ""


def read_pdparams(word: str) -> dict[str, Any]:
    """Read a file: Paddle writes a pickle, or (from 3.0 on, if asked to) safetensors under the same ending.

    Raises:
        CheckpointError: The file is missing or damaged, or holds anything but arrays and plain values.
    """
    from dino.weights.read import read_safetensors

    path = Path(word)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    state = read_safetensors(path) if start[8:] == b"{" else read_paddle(path)
    networks = {
        name: transpose_linear(value) if isinstance(value, dict) else value
        for name, value in state.items()
    }
    return transpose_linear(networks)


def read_paddle(path: Path) -> dict[str, Any]:
    """Read a `.pdparams` file that is a pickle.

    Returns:
        Names to tensors, in the dictionary or in one of its dictionaries, and plain values. Numbers of
        bfloat16, which Paddle stores as uint16, have their own dtype.

    Raises:
        CheckpointError: The file is missing or damaged, or holds anything but arrays and plain values.
    """
    from dino import plain_pickle

    try:
        content = plain_pickle.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(
                f"it holds a {type(content).__name__}, and a dictionary of arrays is wanted"
            )
        return _translate(content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except BROKEN as error:
        raise CheckpointError(
            f"{path} is damaged or no file of Paddle's weights: {error}"
        ) from error


def _translate(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Arrays to tensors; a network may lie one dictionary deeper."""
    import numpy as np

    found = {
        name: _unwrap(value) for name, value in content.items() if name not in {NAME_TABLE, SLICES}
    }
    for name, cut in content.get(SLICES, {}).items():
        pieces = [_check_array(piece, found.pop(_check_name(piece))) for piece in cut["slices"]]
        found[name] = np.concatenate(pieces).reshape(tuple(cut["OriginShape"]))
    return {_check_name(name): _translate_value(name, value) for name, value in found.items()}


def _translate_value(name: str, value: Any) -> Any:
    if _is_array(value):
        return _to_tensor(name, value)
    if isinstance(value, dict):
        inner = {_check_name(part): _unwrap(content) for part, content in value.items()}
        return {
            part: _to_tensor(part, one) if _is_array(one) else one for part, one in inner.items()
        }
    return value


def _unwrap(value: Any) -> Any:
    """A tensor that was saved within another object is a pair of its name and array."""
    is_pair = isinstance(value, tuple) and len(value) == 2
    return value[1] if is_pair and _is_array(value[1]) else value


def _is_array(value: Any) -> bool:
    import numpy as np

    return isinstance(value, np.ndarray | np.generic)


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"it has a {type(name).__name__} where a str belongs")
    return name


def _check_array(name: Any, array: Any) -> np.ndarray:
    """Before arrays are joined or converted: texts of unlike lengths would be padded without limit."""
    import numpy as np

    found: np.ndarray = np.asarray(array) if _is_array(array) else np.empty(0, object)
    kind = found.dtype.str.lstrip("<|")
    if kind not in DTYPES:
        raise ValueError(
            f"the array {name} has the dtype {kind!r}, and little-endian numbers are read"
        )
    return found


def _to_tensor(name: str, value: Any) -> Tensor:
    import numpy as np
    import torch

    array = _check_array(name, value)
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def transpose_linear(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Matrices called `weight` from (in, out), as Paddle's linear layers have them, to (out, in), or back."""
    from torch import Tensor

    return {
        name: value.T.contiguous()
        if isinstance(value, Tensor) and value.ndim == 2 and name.endswith("weight")
        else value
        for name, value in tensors.items()
    }


def write_paddle(network: Network, target: Path) -> None:
    """Write names to arrays, as `paddle.save` does and PASSL's probe reads: `backbone.*`, `linear.linear.*`.

    Linear weights are (in, out) there; bfloat16 is stored as uint16.

    Raises:
        WeightsError: PASSL has no such network.
        OptionError: The file cannot be written.
    """
    from dino.files import atomic_write
    from dino.weights.convert import BACKBONE, LINEAR

    if not network.is_plain_vit:
        raise WeightsError(
            f"{network.origin}: PASSL has the paper's vision transformers alone, not {network.arch}"
        )
    named = {f"{BACKBONE}{name}": tensor for name, tensor in network.tensors.items()}
    named |= {f"{LINEAR[0]}{name}": tensor for name, tensor in network.linear.items()}
    other = {str(tensor.dtype).removeprefix("torch.") for tensor in named.values()} - FORMATS
    if other:
        raise WeightsError(
            f"{network.origin} holds {', '.join(sorted(other))}, which Paddle's files have not"
        )
    arrays = {name: to_array(tensor) for name, tensor in transpose_linear(named).items()}
    with atomic_write(target, "`file_out`") as temporary, temporary.open("wb") as file:
        pickle.dump(arrays, file, protocol=PROTOCOL)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor as Paddle stores it: the same numbers, bfloat16 as their bits in uint16."""
    import numpy as np
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.contiguous().numpy()


FORMAT = Format(
    rank=7,
    detect=lambda path: path.suffix == ENDING,
    read=read_pdparams,
    kind=name_kind,
    config=PaddleConfig,
    write=write_paddle,
    ending=ENDING,
)
