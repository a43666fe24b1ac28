"""Names of the tensors in other projects' files, and ours for them.

Ours are the original's; timm's vision transformers and masked autoencoders have them too. Letters: D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dino import checkpoint
from dino.models.registry import VITS

# transformers' ViT as it lies on disk (modeling_vit.py; what its newer releases rename, they rename when they read).
OUTSIDE_BLOCKS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
IN_BLOCKS = {
    "norm1": ("layernorm_before",),
    # one matrix here, (3 D, D), is three there
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}

IPU_NETWORKS = ("student", "teacher")


def rename_to_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of one network under our names, whoever's they had; what we have no name for keeps its own."""
    tensors = checkpoint.strip_prefixes(tensors)
    if not is_hugging_face({name.removeprefix("vit."): tensor for name, tensor in tensors.items()}):
        return tensors
    return from_hugging_face(checkpoint.join_unique((name.removeprefix("vit."), t) for name, t in tensors.items()))


def is_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers' ViT."""
    return "embeddings.patch_embeddings.projection.weight" in tensors


def is_vision_transformer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of our vision transformers, and the shapes tell its sizes."""
    sizes = {"pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    if not {"pos_embed", "patch_embed.proj.weight"} <= tensors.keys():
        return False
    shaped = all(tensors[n].ndim == count and tensors[n].numel() for n, count in sizes.items() if n in tensors)
    return shaped and tensors["pos_embed"].shape[1] > 1


def is_ipu(tensors: Any) -> bool:
    """Whether the names are those of the IPU port, which keeps student and teacher in one dictionary."""
    return isinstance(tensors, Mapping) and any(
        str(name).startswith(f"{network}_head.") for name in tensors for network in IPU_NETWORKS
    )


def split_ipu(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The two networks of the IPU port, heads under `head.`; what belongs to neither of them is left in both."""
    own = tuple(f"{network}{part}." for network in IPU_NETWORKS for part in ("", "_head"))
    return {
        network: {
            name.removeprefix(f"{network}.").replace(f"{network}_head.", "head."): tensor
            for name, tensor in tensors.items()
            if name.startswith((f"{network}.", f"{network}_head.")) or not name.startswith(own)
        }
        for network in IPU_NETWORKS
    }


def count_blocks(tensors: Mapping[str, Tensor]) -> int:
    """How many blocks a vision transformer under our names has."""
    return len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under transformers' names, under ours; query, key and value are joined.

    Raises:
        CheckpointError: One is there under both names.
    """
    left, ours = dict(tensors), {}
    for name, theirs in _name_pairs(len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")})):
        if all(part in left and left[part].ndim for part in theirs) and len({left[part].shape for part in theirs}) == 1:
            parts = [left.pop(part) for part in theirs]
            ours[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return checkpoint.join_unique([*left.items(), *ours.items()])


def to_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision transformer's tensors under our names, under transformers'; query, key and value are parted."""
    return {
        part: piece.contiguous()
        for name, theirs in _name_pairs(count_blocks(tensors))
        for part, piece in zip(theirs, tensors[name].chunk(len(theirs)), strict=True)
    }


def transpose_linear(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Matrices called `weight` from (in, out), as Paddle's linear layers have them, to (out, in), or back."""
    return {
        name: value.T.contiguous()
        if isinstance(value, Tensor) and value.ndim == 2 and name.endswith("weight")
        else value
        for name, value in tensors.items()
    }


def _name_pairs(depth: int) -> list[tuple[str, tuple[str, ...]]]:
    """Each of our names with transformers'."""
    blocks = [
        (f"blocks.{block}.{ours}.{kind}", tuple(f"encoder.layer.{block}.{part}.{kind}" for part in theirs))
        for block in range(depth)
        for ours, theirs in IN_BLOCKS.items()
        for kind in ("weight", "bias")
    ]
    return [*((ours, (theirs,)) for ours, theirs in OUTSIDE_BLOCKS.items()), *blocks]


def guess_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of one of our vision transformers tell about it; nothing for other networks."""
    if not is_vision_transformer(tensors):
        return {}
    convs = [tensor for name, tensor in tensors.items() if name.startswith("patch_embed.") and tensor.ndim == 4]
    dim, in_chans = convs[-1].shape[0], convs[0].shape[1]
    patch_size = convs[-1].shape[-1] << (len(convs) - 1)  # each convolution of a stem halves the side
    depth = count_blocks(tensors)
    arch = next((name for name, shape in VITS.items() if (shape.embed_dim, shape.depth) == (dim, depth)), None)
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    found = {"patch_size": patch_size, "in_chans": in_chans}
    if side * side == tensors["pos_embed"].shape[1] - 1:
        found["image_size"] = side * patch_size
    return found | ({"arch": arch} if arch else {})
