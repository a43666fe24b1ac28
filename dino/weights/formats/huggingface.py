"""Folders of the transformers library: `python -m dino.interop.huggingface IN FOLDER`, or `FOLDER OUT.pth`.

The names of its ViT's tensors are known in any file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.errors import CheckpointError, WeightsError
from dino.weights.config import ConversionConfig
from dino.weights.formats import Contents, Format

if TYPE_CHECKING:
    from torch import Tensor

    from dino.weights.network import Network

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
FIXED = {"model_type": "vit", "hidden_act": "gelu", "qkv_bias": True}
USUAL_EPS = 1e-12  # layer_norm_eps that transformers writes where nobody chose one, for weights trained with 1e-6 too
DEFAULTS = {  # of transformers' ViTConfig
    **{"hidden_act": "gelu", "layer_norm_eps": USUAL_EPS, "qkv_bias": True},
    **{"image_size": 224, "patch_size": 16, "num_channels": 3},
}
BICUBIC = 3  # Pillow's number
MARK = "embeddings.patch_embeddings.projection.weight"
# transformers' ViT as it lies on disk (modeling_vit.py; what its newer releases rename, they rename when they read).
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
    # one matrix here, (3 D, D), is three there
    "attn.qkv": (
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ),
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


def is_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers' ViT."""
    return MARK in tensors


def name_kind(contents: Contents) -> str:
    """What a folder is, or a file of such tensors."""
    raw = {name.removeprefix("vit.") for tensors in contents.networks.values() for name in tensors}
    is_known = Path(contents.word).is_dir() or MARK in raw
    return "Hugging Face, a ViT of the transformers library" if is_known else ""


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Tensors under our names, with or without `vit.` in front of theirs; None where the names are others.

    Raises:
        CheckpointError: One is there under two names.
    """
    from dino import checkpoint

    named = [(name.removeprefix("vit."), tensor) for name, tensor in tensors.items()]
    return (
        from_hugging_face(checkpoint.join_unique(named)) if is_hugging_face(dict(named)) else None
    )


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under transformers' names, under ours; query, key and value are joined.

    Raises:
        CheckpointError: One is there under both names.
    """
    import torch

    from dino import checkpoint

    left, ours = dict(tensors), {}
    for name, theirs in _name_pairs(
        len({name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")})
    ):
        if (
            all(part in left and left[part].ndim for part in theirs)
            and len({left[part].shape for part in theirs}) == 1
        ):
            parts = [left.pop(part) for part in theirs]
            ours[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return checkpoint.join_unique([*left.items(), *ours.items()])


def to_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision transformer's tensors under our names, under transformers'; query, key and value are parted."""
    from dino.weights.network import count_blocks

    return {
        part: piece.contiguous()
        for name, theirs in _name_pairs(count_blocks(tensors))
        for part, piece in zip(theirs, tensors[name].chunk(len(theirs)), strict=True)
    }


def _name_pairs(depth: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each of our names of a network of so many blocks, with transformers'."""
    for ours, theirs in OUTSIDE_BLOCKS.items():
        yield ours, (theirs,)
    for block in range(depth):
        for ours, parts in IN_BLOCKS.items():
            for kind in ("weight", "bias"):
                named = tuple(f"encoder.layer.{block}.{part}.{kind}" for part in parts)
                yield f"blocks.{block}.{ours}.{kind}", named


def read_folder(word: str) -> dict[str, Any]:
    """Read config.json, the weights, and, if there, how images are normalized.

    Raises:
        CheckpointError: A file is missing or damaged.
        WeightsError: It is another network than our vision transformers.
    """
    from dino.weights.read import read_weights, select_network

    path = Path(word)
    config = {**DEFAULTS, **_read_json(path / "config.json")}
    _check_config(config, path)
    file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} holds none of {', '.join(WEIGHTS)}")
    about = (
        _read_json(path / "preprocessor_config.json")
        if (path / "preprocessor_config.json").exists()
        else {}
    )
    normalization = {"mean": about.get("image_mean"), "std": about.get("image_std")}
    tensors = select_network(read_weights(str(file)), "state_dict", file)
    return {
        "state_dict": tensors,
        "args": {
            "arch": _find_arch(config, path),
            "image_size": _check_input(config, tensors, path),
        },
        "normalisation": normalization if all(normalization.values()) else None,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, wants a dictionary")
    return content


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a configuration of transformers that is not of a ViT as ours are."""
    from dino.models.vit import LAYER_NORM_EPS

    wanted = {**FIXED, "layer_norm_eps": LAYER_NORM_EPS}
    if config["layer_norm_eps"] == USUAL_EPS:
        logger.info(
            "%s: layer_norm_eps %g, transformers' default; computed with %g",
            path,
            USUAL_EPS,
            LAYER_NORM_EPS,
        )
        wanted["layer_norm_eps"] = USUAL_EPS
    other = [
        f"{name} {config.get(name)!r}, wants {own!r}"
        for name, own in wanted.items()
        if config.get(name) != own
    ]
    if other:
        raise WeightsError(f"{path} is another network than this project's ViT: {'; '.join(other)}")


def _check_input(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> list[int]:
    """Height and width that a configuration of transformers says, if its tensors are of that size, patch and channels.

    Raises:
        WeightsError: They are of others.
    """
    from dino.weights.network import is_vision_transformer
    from dino.weights.read import rename_to_ours

    ours = rename_to_ours(tensors)
    if not is_vision_transformer(ours):
        return []  # what is missing is listed later
    size, patch, channels = (config[name] for name in ("image_size", "patch_size", "num_channels"))
    height, width = sides = (
        list(size) if isinstance(size, list) and len(size) == 2 else [size, size]
    )
    try:
        said = (channels, patch, patch), 1 + (height // patch) * (width // patch)
    except (TypeError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{path}: image_size {size!r} and patch_size {patch!r} are no numbers of pixels"
        ) from error
    position = ours["pos_embed"]
    found = (
        tuple(ours["patch_embed.proj.weight"].shape[1:]),
        position.shape[1] if position.ndim == 3 else 0,
    )
    if said != found:
        raise WeightsError(
            f"{path}: image_size {size}, patch_size {patch}, num_channels {channels} of "
            f"config.json mean a projection of {said[0]} and {said[1]} positions",
            remedy=f"its tensors have {found[0]} and {found[1]}: mend config.json",
        )
    return sides


def _find_arch(config: Mapping[str, Any], path: Path) -> str:
    """Our name of the network that a configuration of transformers' ViT describes; tensors do not tell its heads."""
    from dino.models.registry import VITS

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    wanted = tuple(config.get(name) for name in names)
    for arch, shape in VITS.items():
        if wanted == (
            shape.embed_dim,
            shape.depth,
            shape.heads,
            int(shape.embed_dim * shape.mlp_ratio),
        ):
            return arch
    named = ", ".join(f"{name} {value}" for name, value in zip(names, wanted, strict=True))
    raise WeightsError(f"{path}: no architecture of this project has {named}")


def write_folder(network: Network, target: Path) -> None:
    """Write what `transformers.ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)` reads.

    Raises:
        WeightsError: transformers' ViT cannot hold the network.
        OptionError: The folder cannot be written to.
    """
    from safetensors.torch import save

    from dino.files import atomic_write
    from dino.runtime.context import make_output_folder

    if not (network.is_plain_vit and network.arch):
        other = network.arch or "a network whose number of heads is not known"
        raise WeightsError(
            f"{network.origin}: transformers' ViT has the shapes of vit_small and the like, not {other}"
        )
    make_output_folder(str(target), "`file_out`")
    for name, content in {
        "config.json": describe(network),
        "preprocessor_config.json": describe_input(network),
    }.items():
        with atomic_write(target / name, "`file_out`") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic_write(target / "model.safetensors", "`file_out`") as temporary:
        temporary.write_bytes(save(to_hugging_face(network.tensors), metadata={"format": "pt"}))


def describe(network: Network) -> dict[str, Any]:
    """The network as transformers' ViTConfig."""
    from dino.models.registry import VITS
    from dino.models.vit import LAYER_NORM_EPS

    shape, (height, width) = VITS[network.arch], network.grid_size
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": int(shape.embed_dim * shape.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": height if height == width else [height, width],
        "patch_size": network.patch_size,
        "num_channels": network.in_chans,
        "qkv_bias": True,
        "torch_dtype": str(next(iter(network.tensors.values())).dtype).removeprefix("torch."),
    }


def describe_input(network: Network) -> dict[str, Any]:
    """How this project's evaluations prepare an image, for transformers' AutoImageProcessor."""
    from dino.data.crops import RESIZE_RATIO
    from dino.data.photometric import build_normalization

    height, width = network.image_size
    normalization = build_normalization(network.in_chans, network.normalization)
    return {
        "image_processor_type": "BitImageProcessor",  # the one that cuts the center of a resized image
        "do_convert_rgb": network.in_chans == 3,
        "do_resize": True,
        "size": {"shortest_edge": round(min(height, width) * RESIZE_RATIO)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
    }


FORMAT = Format(
    rank=1,
    detect=Path.is_dir,
    read=read_folder,
    rename=rename,
    kind=name_kind,
    config=HuggingFaceConfig,
    write=write_folder,
    tells_images=True,
)
