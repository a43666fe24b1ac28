"""This project's backbones as safetensors: `dino convert IN OUT.safetensors --to safetensors`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dino.weights.config import ConversionConfig
from dino.weights.formats import Format

if TYPE_CHECKING:
    from dino.weights.network import Network


@dataclass(frozen=True, kw_only=True)
class SafetensorsConfig(ConversionConfig):
    """Write a backbone as safetensors, with all that a command needs to know about it.

    dino convert IN OUT.safetensors --to safetensors, or IN.safetensors OUT.pth
    """


def write(network: Network, target: Path) -> None:
    """Write the file; see `dino.weights.ours`."""
    from dino.weights.ours import write_safetensors

    write_safetensors(network, target)


# Reading needs no code here: the content of any safetensors file says whose it is.
FORMAT = Format(
    config=SafetensorsConfig, write=write, ending=".safetensors", tells_images=True, rank=9
)
