"""PASSL's weights: `python -m dino.interop.paddle IN.pdparams OUT.pth`, or `IN OUT.pdparams`; no Paddle is needed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

from dino.weights.convert import Form, Network

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FORMATS = {"bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"}
PROTOCOL = 4  # of the pickle; paddle.load takes 2 to 4


def write_paddle(network: Network, target: Path) -> None:
    """Write names to arrays, as `paddle.save` does and PASSL's probe reads: `backbone.*`, `linear.linear.*`.

    Linear weights are (in, out) there; bfloat16 is stored as uint16.

    Raises:
        WeightsError: PASSL has no such network.
        OptionError: The file cannot be written.
    """
    from dino.errors import WeightsError
    from dino.files import atomic_write
    from dino.models.layouts import transpose_linear
    from dino.weights.convert import BACKBONE, LINEAR

    if not network.is_plain_vit:
        raise WeightsError(f"{network.origin}: PASSL has the paper's vision transformers alone, not {network.arch}")
    named = {f"{BACKBONE}{name}": tensor for name, tensor in network.tensors.items()}
    named |= {f"{LINEAR[0]}{name}": tensor for name, tensor in network.linear.items()}
    other = {str(tensor.dtype).removeprefix("torch.") for tensor in named.values()} - FORMATS
    if other:
        raise WeightsError(f"{network.origin} holds {', '.join(sorted(other))}, which Paddle's files have not")
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


FORM = Form(write=write_paddle, ending=".pdparams")
