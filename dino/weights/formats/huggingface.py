"""Folders of transformers: `python -m dino.interop.huggingface IN FOLDER`, or `FOLDER OUT.pth`.

The tensor names of its ViT are recognized in any file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.errors import WeightsError
from dino.weights.config import ConversionConfig
from dino.weights.formats import Contents, Format

if TYPE_CHECKING:
    from torch import Tensor

    from dino.models.registry import VitShape
    from dino.weights.network import Network

logger = logging.getLogger(__name__)

FIXED = {"model_type": "vit", "hidden_act": "gelu", "qkv_bias": True}
USUAL_EPS = (
    1e-12  # default layer_norm_eps of transformers, also written for weights trained with 1e-6
)
DEFAULTS = {  # of transformers' ViTConfig
    **{"hidden_act": "gelu", "layer_norm_eps": USUAL_EPS, "qkv_bias": True},
    **{"image_size": 224, "patch_size": 16, "num_channels": 3},
}
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
BICUBIC = 3  # Pillow's number
MARK = "embeddings.patch_embeddings.projection.weight"
# Names on disk in transformers' modeling_vit.py. Newer releases rename them when they read a file.
OUTSIDE_BLOCKS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": MARK,
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
IN_BLOCKS = {
    "norm1": ("layernorm_before",),
    # our one matrix (3 D, D) is three matrices (D, D) there
    "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig(ConversionConfig):
    """Convert weights between this project and the transformers library (ViTModel).

    python -m dino.interop.huggingface IN FOLDER, or FOLDER OUT.pth
    """


def name_kind(contents: Contents) -> str:
    """Name a folder, or a file with such tensors."""
    raw = {name.removeprefix("vit.") for tensors in contents.networks.values() for name in tensors}
    is_known = Path(contents.word).is_dir() or MARK in raw
    return "Hugging Face, a ViT of the transformers library" if is_known else ""


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename from transformers and join query, key and value. Returns None for other names.

    Raises:
        CheckpointError: A tensor is in the file under two names.
    """
    import torch

    from dino import stored

    named = [(name.removeprefix("vit."), tensor) for name, tensor in tensors.items()]
    if MARK not in dict(named):
        return None
    left, ours = stored.join_unique(named), {}
    blocks = {name.split(".")[2] for name in left if name.startswith("encoder.layer.")}
    for name, theirs in _name_pairs(len(blocks)):
        pieces = [left[part] for part in theirs if part in left and left[part].ndim]
        if len(pieces) == len(theirs) and len({piece.shape for piece in pieces}) == 1:
            ours[name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            for part in theirs:
                del left[part]
    return stored.join_unique([*left.items(), *ours.items()])


def to_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our names to transformers'. Query, key and value are split."""
    from dino.weights.network import count_blocks

    return {
        part: piece.contiguous()
        for name, theirs in _name_pairs(count_blocks(tensors))
        for part, piece in zip(theirs, tensors[name].chunk(len(theirs)), strict=True)
    }


def _name_pairs(depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each of our names, for a network of `depth` blocks, with transformers' names."""
    for ours, theirs in OUTSIDE_BLOCKS.items():
        yield ours, (theirs,)
    for block in range(depth):
        for ours, parts in IN_BLOCKS.items():
            for tensor in ("weight", "bias"):
                named = tuple(f"encoder.layer.{block}.{part}.{tensor}" for part in parts)
                yield f"blocks.{block}.{ours}.{tensor}", named


def read_folder(word: str) -> dict[str, Any]:
    """Read config.json, the weights, and, if present, how images are normalized.

    Raises:
        CheckpointError: A file is missing or damaged.
        WeightsError: The network is not one of our vision transformers.
    """
    from dino.weights.hugging_face_files import read_json, read_tensors

    path = Path(word)
    config = {**DEFAULTS, **read_json(path / "config.json")}
    _check_config(config, path)
    about_images = path / "preprocessor_config.json"
    images = read_json(about_images) if about_images.exists() else {}
    normalization = {"mean": images.get("image_mean"), "std": images.get("image_std")}
    tensors = read_tensors(path)
    size = _check_input(config, tensors, path)
    return {
        "state_dict": tensors,
        "args": {"arch": _find_arch(config, path), "image_size": size},
        "normalisation": normalization if all(normalization.values()) else None,
    }


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a configuration of transformers that does not describe a ViT like ours."""
    from dino.models.block import LAYER_NORM_EPS

    expected = {**FIXED, "layer_norm_eps": LAYER_NORM_EPS}
    if config["layer_norm_eps"] == USUAL_EPS:
        text = "%s: layer_norm_eps %g, transformers' default; computed with %g"
        logger.info(text, path, USUAL_EPS, LAYER_NORM_EPS)
        expected["layer_norm_eps"] = USUAL_EPS
    wrong = [
        f"{name} must be {value!r} (got {config.get(name)!r})"
        for name, value in expected.items()
        if config.get(name) != value
    ]
    if wrong:
        raise WeightsError(f"{path} is not a ViT like this project's: {'; '.join(wrong)}")


def _check_input(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> list[int]:
    """Return the image height and width of a configuration of transformers.

    Raises:
        WeightsError: The tensors have another size, patch or number of channels.
    """
    from dino.weights.network import is_vision_transformer
    from dino.weights.read import rename_to_ours

    ours = rename_to_ours(tensors)
    if not is_vision_transformer(ours):
        return []  # missing tensors are listed later
    size, patch, channels = (config[name] for name in ("image_size", "patch_size", "num_channels"))
    sides = list(size) if isinstance(size, list) and len(size) == 2 else [size, size]
    try:
        expected = (channels, patch, patch), 1 + (sides[0] // patch) * (sides[1] // patch)
    except (TypeError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{path}: image_size and patch_size must be numbers of pixels (got {size!r}, {patch!r})"
        ) from error
    position = ours["pos_embed"]
    projection = tuple(ours["patch_embed.proj.weight"].shape[1:])
    positions = position.shape[1] if position.ndim == 3 else 0
    if expected != (projection, positions):
        raise WeightsError(
            f"{path}: image_size {size}, patch_size {patch}, num_channels {channels} of "
            f"config.json mean a projection of {expected[0]} and {expected[1]} positions",
            remedy=f"its tensors have {projection} and {positions}: fix config.json",
        )
    return sides


def _find_arch(config: Mapping[str, Any], path: Path) -> str:
    """Find our name for a configuration of transformers' ViT: tensors do not reveal the heads."""
    from dino.models.registry import VITS

    for arch, shape in VITS.items():
        if all(config.get(name) == value for name, value in _describe_shape(shape).items()):
            return arch
    described = ", ".join(f"{name} {config.get(name)}" for name in SHAPE)
    raise WeightsError(f"{path}: no architecture of this project has {described}")


def _describe_shape(shape: VitShape) -> dict[str, int]:
    hidden = int(shape.embed_dim * shape.mlp_ratio)
    return dict(zip(SHAPE, (shape.embed_dim, shape.depth, shape.heads, hidden), strict=True))


def write_folder(network: Network, target: Path) -> None:
    """Write a folder for `transformers.ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)`.

    Raises:
        WeightsError: transformers' ViT cannot hold the network.
        OptionError: The folder cannot be written to.
    """
    from safetensors.torch import save

    from dino.files import atomic_write
    from dino.runtime.context import make_output_folder

    if not (network.is_plain_vit and network.arch):
        got = network.arch or "a network with an unknown number of heads"
        raise WeightsError(
            f"{network.origin} must be a plain ViT such as vit_small for transformers (got {got})",
            remedy="ONNX holds any network",
        )
    make_output_folder(str(target), "`file_out`")
    files = (("config.json", describe), ("preprocessor_config.json", describe_input))
    for name, build in files:
        text = json.dumps(build(network), indent=2) + "\n"
        with atomic_write(target / name, "`file_out`") as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic_write(target / "model.safetensors", "`file_out`") as temporary:
        temporary.write_bytes(save(to_hugging_face(network.tensors), metadata={"format": "pt"}))


def describe(network: Network) -> dict[str, Any]:
    """Describe the network as transformers' ViTConfig."""
    from dino.models.block import LAYER_NORM_EPS
    from dino.models.registry import VITS

    height, width = network.grid_size
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        **_describe_shape(VITS[network.arch]),
        "hidden_act": "gelu",
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": height if height == width else [height, width],
        **{"patch_size": network.patch_size, "num_channels": network.in_chans, "qkv_bias": True},
        "torch_dtype": str(next(iter(network.tensors.values())).dtype).removeprefix("torch."),
    }


def describe_input(network: Network) -> dict[str, Any]:
    """Describe the image preparation of our evaluations for transformers' AutoImageProcessor."""
    from dino.data.crops import RESIZE_RATIO
    from dino.data.photometric import build_normalization

    height, width = network.image_size
    shorter = round(min(height, width) * RESIZE_RATIO)
    normalization = build_normalization(network.in_chans, network.normalization)
    return {
        "image_processor_type": "BitImageProcessor",  # resizes, then crops the center
        "do_convert_rgb": network.in_chans == 3,
        **{"do_resize": True, "size": {"shortest_edge": shorter}, "resample": BICUBIC},
        **{"do_center_crop": True, "crop_size": {"height": height, "width": width}},
        **{"do_rescale": True, "rescale_factor": 1 / 255},
        "do_normalize": True,
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
    }


FORMAT = Format(
    rank=2,
    detect=Path.is_dir,
    read=read_folder,
    rename=rename,
    kind=name_kind,
    config=HuggingFaceConfig,
    write=write_folder,
    tells_images=True,
)
