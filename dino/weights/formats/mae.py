"""Files of masked autoencoders (MAE): a vision transformer as encoder, and its decoder.

The encoder already has the names of our vision transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dino.errors import WeightsError
from dino.weights.formats import Contents, Format

MAE = "mae"  # value of `arch`: the ViT of a masked autoencoder, with the shapes of its file
NETWORKS = {  # its names in models_mae.py; the patch size comes from the tensors
    "mae_vit_base_patch16": "vit_base",
    "mae_vit_large_patch16": "vit_large",
    "mae_vit_huge_patch14": "vit_huge",
}
DECODER = r"mask_token$|decoder_"  # tensors next to the encoder


def is_autoencoder(arch: str) -> bool:
    """Whether the name means the encoder of a masked autoencoder, described by its file only."""
    return arch == MAE or arch in NETWORKS


def name_encoder(arch: str, guessed: Mapping[str, Any]) -> str:
    """Name the vision transformer of ours that the encoder is.

    Args:
        arch: A name that `is_autoencoder` accepts.
        guessed: The result of `guess_backbone` on the tensors of the file.

    Raises:
        WeightsError: The tensors are not a vision transformer's.
    """
    if "arch" not in guessed:
        raise WeightsError(
            f"`arch` {MAE} needs `pretrained_weights` with the encoder of a masked autoencoder "
            "(a ViT)",
            value=MAE,
        )
    return NETWORKS.get(arch, str(guessed["arch"]))


def name_kind(contents: Contents) -> str:
    """Name a file that holds a decoder or a mask token."""
    is_known = any(name.startswith(("decoder_", "mask_token")) for name in contents.names)
    return "masked autoencoder (MAE)" if is_known else ""


FORMAT = Format(rank=4, keys=("model",), beside=DECODER, kind=name_kind)
