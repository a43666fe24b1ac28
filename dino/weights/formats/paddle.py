"""PASSL's weights: `python -m dino.interop.paddle IN.pdparams OUT.pth`, or `IN OUT.pdparams`.

Paddle need not be installed. `paddle.save` writes one plain pickle of numpy arrays, which
`dino.plain_pickle` reads without unpickling. This module interprets it: tables of names, tensors in
pieces, bfloat16 stored as uint16, and matrices (in, out).
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
NAME_TABLE = "StructuredToParameterName@@"  # Paddle's internal names, not needed here
SLICES = "UnpackBigParamInfor@@"  # how tensors over 1 GiB were cut (pickle protocols 2 and 3)
DTYPES = {"f2", "f4", "f8", "u1", "u2", "i1", "i2", "i4", "i8", "b1"}
BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError)
FORMATS = {
    *("bfloat16", "float16", "float32", "float64"),
    *("uint8", "int8", "int16", "int32", "int64", "bool"),
}
PROTOCOL = 4  # of the pickle; paddle.load accepts 2 to 4


@dataclass(frozen=True, kw_only=True)
class PaddleConfig(ConversionConfig):
    """Convert weights between this project and Paddle's PASSL, and a linear layer if present.

    python -m dino.interop.paddle IN.pdparams OUT.pth, or IN OUT.pdparams
    """

    layer: LayerConfig = LayerConfig()


def name_kind(contents: Contents) -> str:
    """Name a file of Paddle."""
    return "PASSL (Paddle)" if contents.word.endswith(ENDING) else ""


def read_pdparams(word: str) -> dict[str, Any]:
    """Read a `.pdparams` file: a pickle, or safetensors, which Paddle 3.0 and later can write too.

    Raises:
        CheckpointError: The file is missing or damaged, or holds more than arrays and plain values.
    """
    from dino.weights.safetensors_file import read_safetensors

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
        Tensors by name, at the top level or one level deeper, and plain values. bfloat16 tensors,
        which Paddle stores as uint16, have dtype bfloat16.

    Raises:
        CheckpointError: The file is missing or damaged, or holds more than arrays and plain values.
    """
    from dino import plain_pickle

    try:
        content = plain_pickle.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it must hold a dictionary of arrays (got {type(content).__name__})")
        return _translate(content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except BROKEN as error:
        raise CheckpointError(f"{path} is damaged or not a Paddle weights file: {error}") from error


def _translate(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Translate arrays to tensors, also those of a network one level deeper."""
    import numpy as np

    values = {
        name: _unwrap(value) for name, value in content.items() if name not in {NAME_TABLE, SLICES}
    }
    for name, cut in content.get(SLICES, {}).items():
        pieces = [_check_array(piece, values.pop(_check_name(piece))) for piece in cut["slices"]]
        values[name] = np.concatenate(pieces).reshape(tuple(cut["OriginShape"]))
    return {_check_name(name): _translate_value(name, value) for name, value in values.items()}


def _translate_value(name: str, value: Any) -> Any:
    if _is_array(value):
        return _to_tensor(name, value)
    if isinstance(value, dict):
        inner = {_check_name(key): _unwrap(content) for key, content in value.items()}
        return {
            key: _to_tensor(key, item) if _is_array(item) else item for key, item in inner.items()
        }
    return value


def _unwrap(value: Any) -> Any:
    """Return the array of a (name, array) pair, the form of a tensor inside another object."""
    is_pair = isinstance(value, tuple) and len(value) == 2
    return value[1] if is_pair and _is_array(value[1]) else value


def _is_array(value: Any) -> bool:
    import numpy as np

    return isinstance(value, np.ndarray | np.generic)


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"a name must be a str (got {type(name).__name__})")
    return name


def _check_array(name: Any, array: Any) -> np.ndarray:
    """Check an array's dtype before it is joined: texts would be padded without limit."""
    import numpy as np

    checked: np.ndarray = np.asarray(array) if _is_array(array) else np.empty(0, object)
    dtype = checked.dtype.str.lstrip("<|")
    if dtype not in DTYPES:
        raise ValueError(f"the array {name} must hold little-endian numbers (got dtype {dtype!r})")
    return checked


def _to_tensor(name: str, value: Any) -> Tensor:
    import numpy as np
    import torch

    array = _check_array(name, value)
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def transpose_linear(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Transpose the matrices named `weight` between Paddle's (in, out) and (out, in)."""
    from torch import Tensor

    return {
        name: value.T.contiguous()
        if isinstance(value, Tensor) and value.ndim == 2 and name.endswith("weight")
        else value
        for name, value in tensors.items()
    }


def write_paddle(network: Network, target: Path) -> None:
    """Write arrays by name as `paddle.save` does: `backbone.*` and `linear.linear.*`, as in PASSL.

    Linear weights are stored as (in, out), and bfloat16 as uint16.

    Raises:
        WeightsError: PASSL does not have the network.
        OptionError: The file cannot be written.
    """
    from dino.files import atomic_write
    from dino.weights.convert import LINEAR
    from dino.weights.ours import BACKBONE

    if not network.is_plain_vit:
        raise WeightsError(
            f"{network.origin} must be a vision transformer of the paper for PASSL "
            f"(got {network.arch})"
        )
    named = {f"{BACKBONE}{name}": tensor for name, tensor in network.tensors.items()}
    named |= {f"{LINEAR[0]}{name}": tensor for name, tensor in network.linear.items()}
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in named.values()}
    unsupported = sorted(dtypes - FORMATS)
    if unsupported:
        raise WeightsError(
            f"{network.origin} holds {', '.join(unsupported)}, which Paddle's files do not support"
        )
    arrays = {name: to_array(tensor) for name, tensor in transpose_linear(named).items()}
    with atomic_write(target, "`file_out`") as temporary, temporary.open("wb") as file:
        pickle.dump(arrays, file, protocol=PROTOCOL)


def to_array(tensor: Tensor) -> np.ndarray:
    """Return the array that Paddle stores: the same numbers, or the bits of bfloat16 as uint16."""
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
