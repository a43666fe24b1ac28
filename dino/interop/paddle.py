"""PASSL's weights: `python -m dino.interop.paddle IN.pdparams OUT.pth`, or `IN OUT.pdparams`; no Paddle is needed."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dino.errors import exit_code
from dino.flags import ConversionOptions, LayerFlags
from dino.options import name_places, parse

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dino.interop.conversion import Network

FORMATS = {"bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"}
PROTOCOL = 4  # of the pickle; paddle.load takes 2 to 4


@dataclass(frozen=True, kw_only=True)
class PaddleOptions(ConversionOptions):
    """Convert weights between this project and Paddle's PASSL, with a linear layer where there is one.

    python -m dino.interop.paddle IN.pdparams OUT.pth, or IN OUT.pdparams
    """

    layer: LayerFlags


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the weights.

    Raises:
        DinoError: They cannot be read, are no vision transformer's, or cannot be written.
    """
    options = parse(PaddleOptions, name_places(argv, "--pretrained_weights", "--output"))

    from dino.interop.conversion import Form, convert
    from dino.runtime.context import set_up_logging

    set_up_logging()
    convert(options, Form(write=write_paddle, ending=".pdparams"), options.layer)


def write_paddle(network: Network, target: Path) -> None:
    """Write names to arrays, as `paddle.save` does and PASSL's probe reads: `backbone.*`, `linear.linear.*`.

    Linear weights are (in, out) there; bfloat16 is stored as uint16.

    Raises:
        WeightsError: PASSL has no such network.
        OptionError: The file cannot be written.
    """
    from dino.errors import WeightsError
    from dino.files import writing_whole
    from dino.interop.conversion import BACKBONE, LINEAR
    from dino.models.layouts import transpose_linear

    if not network.is_plain_vit:
        raise WeightsError(f"{network.origin}: PASSL has the paper's vision transformers alone, not {network.arch}")
    named = {f"{BACKBONE}{name}": tensor for name, tensor in network.tensors.items()}
    named |= {f"{LINEAR[0]}{name}": tensor for name, tensor in network.linear.items()}
    other = {str(tensor.dtype).removeprefix("torch.") for tensor in named.values()} - FORMATS
    if other:
        raise WeightsError(f"{network.origin} holds {', '.join(sorted(other))}, which Paddle's files have not")
    arrays = {name: to_array(tensor) for name, tensor in transpose_linear(named).items()}
    with writing_whole(target, "--output") as temporary, temporary.open("wb") as file:
        pickle.dump(arrays, file, protocol=PROTOCOL)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor as Paddle stores it: the same numbers, bfloat16 as their bits in uint16."""
    import numpy as np
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
    return tensor.contiguous().numpy()


if __name__ == "__main__":
    sys.exit(exit_code(main))
