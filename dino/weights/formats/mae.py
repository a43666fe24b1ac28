"""Files of masked autoencoders (MAE): a vision transformer as encoder, its decoder beside it.

Names are those of our vision transformers already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dino.errors import WeightsError
from dino.weights.formats import Contents, Format

MAE = (
    "mae"  # an architecture's name: the ViT of a masked autoencoder's file, which its tensors tell
)
NETWORKS = {  # and what its own code calls it (models_mae.py); the tensors tell the patch
    "mae_vit_base_patch16": "vit_base",
    "mae_vit_large_patch16": "vit_large",
    "mae_vit_huge_patch14": "vit_huge",
}
DECODER = r"mask_token$|decoder_"  # tensors that lie beside the encoder


def is_autoencoder(arch: str) -> bool:
    """Whether the name means the encoder of a masked autoencoder, which only its file describes."""
    return arch == MAE or arch in NETWORKS


def name_encoder(arch: str, guessed: Mapping[str, Any]) -> str:
    """Which of our vision transformers the encoder is.

    Args:
        arch: A name of `is_autoencoder`.
        guessed: What the tensors of the file tell.

    Raises:
        WeightsError: They tell none.
    """
    if "arch" not in guessed:
        raise WeightsError(
            f"`arch` {MAE} wants `pretrained_weights` with the encoder of a masked autoencoder (a ViT)",
            value=MAE,
        )
    return NETWORKS.get(arch, str(guessed["arch"]))


def name_kind(contents: Contents) -> str:
    """What a file is that holds a decoder or a mask."""
    is_known = any(name.startswith(("decoder_", "mask_token")) for name in contents.names)
    return "masked autoencoder (MAE)" if is_known else ""


FORMAT = Format(rank=4, keys=("model",), beside=DECODER, kind=name_kind)
