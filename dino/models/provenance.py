"""Whose a weights file is and what it holds, told from its names and shapes alone.

Letters: D width, K prototypes, C classes.
"""

from __future__ import annotations

import argparse
import reprlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dino import checkpoint
from dino.models import matching
from dino.models.layouts import (
    count_blocks,
    guess_backbone,
    is_hugging_face,
    is_ipu,
    is_vision_transformer,
    rename_to_ours,
    split_ipu,
)
from dino.models.published import HUB_PREFIX
from dino.models.registry import TIMM_PREFIX
from dino.models.weight_files import PADDLE, SAFETENSORS

Networks = dict[str, Mapping[str, Tensor]]

# What holds a row a prototype: weight norm old, new and folded; the IPU port cuts it in two.
PROTOTYPES = ("weight_v", "parametrizations.weight.original1", "weight")
LAST_LAYERS = ("last_layer", "last_layer1", "last_layer2")
CLASSIFIERS = ("linear.linear", "linear", "head", "fc", "classifier")


def describe_file(word: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a file is.

    Args:
        word: What it was read from.
        state: What `read_weights` gave.

    Returns:
        `kind`, in words; `networks`, each with what is known of it; and of `centre` (K), `epoch`, `normalisation` and
        `flags` those that are in the file.
    """
    networks = split_networks(state)
    loss = state.get("dino_loss")
    center = loss.get("center") if isinstance(loss, Mapping) else state.get("center")
    about = {
        "kind": name_kind(word, state, networks),
        "networks": {name: describe_network(tensors) for name, tensors in networks.items()},
        "centre": center.numel() if isinstance(center, Tensor) else None,
        "epoch": _plain(state.get("epoch")),
        "normalisation": state.get("normalisation"),
        "flags": {name: _plain(value) for name, value in checkpoint.read_args(state).items()},
    }
    return {name: value for name, value in about.items() if value is not None}


def split_networks(state: Mapping[str, Any]) -> Networks:
    """Every dictionary of tensors in a file by its name, or the file itself as `weights`."""
    found: Networks = {}
    for name, value in state.items():
        if name != "dino_loss" and isinstance(value, Mapping) and value and _holds_tensors(value):
            found |= split_ipu(value) if is_ipu(value) else {name: value}
    return found or ({"weights": state} if state and _holds_tensors(state) else {})


def _holds_tensors(values: Mapping[str, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in values.items())


def _plain(value: Any) -> Any:
    """A value of a file as JSON has it; what is nested is shortened, since it may be endless."""
    parts = value if isinstance(value, list | tuple) else [value]
    flat = all(part is None or isinstance(part, str | int | float) for part in parts)
    return value if flat else reprlib.repr(value)


def name_kind(word: str, state: Mapping[str, Any], networks: Networks) -> str:
    """Whose file it is."""
    names = {name for tensors in networks.values() for name in rename_to_ours(tensors)}
    raw = {name.removeprefix("vit."): tensor for tensors in networks.values() for name, tensor in tensors.items()}
    ours = isinstance(state.get("args"), Mapping)
    kinds = {
        "published weights of the original": word.startswith(HUB_PREFIX),
        "weights of timm's hub": word.startswith(TIMM_PREFIX),
        "PASSL (Paddle)": word.endswith(PADDLE),
        "Hugging Face, a ViT of the transformers library": Path(word).is_dir() or is_hugging_face(raw),
        "checkpoint of the IPU port": is_ipu(state.get("model")),
        "masked autoencoder (MAE)": any(name.startswith(("decoder_", "mask_token")) for name in names),
        "checkpoint of this project": ours and "student" in networks,
        "backbone of this project": ours and "teacher" in networks,
        "checkpoint of the original": "student" in networks and isinstance(state.get("args"), argparse.Namespace),
        "linear layer": bool(names) and all(name.startswith("linear.") for name in names),
        "timm, a vision transformer with its classifier": {"pos_embed", "head.weight"} <= names,
        "timm, a vision transformer": word.endswith(SAFETENSORS) and "pos_embed" in names,
        "plain vision transformer: the original's names, which are timm's too": "pos_embed" in names,
        "checkpoint of another network": "student" in networks or "teacher" in networks,
        "plain tensors of another network": bool(names),
    }
    return next((kind for kind, holds in kinds.items() if holds), "no weights")


def describe_network(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors of the backbone, their count and number formats, and what stands beside it; shapes tell the rest."""
    named = rename_to_ours(tensors)
    beside = [name for name in named if matching.VIT.match(name)]
    backbone = [tensor for name, tensor in named.items() if not matching.VIT.match(name)]
    about: dict[str, Any] = {
        "tensors": len(backbone),
        "numbers": sum(tensor.numel() for tensor in backbone),
        "formats": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in named.values()}),
        "beside": dict(Counter(name.split(".")[0] for name in beside)),
        "prototypes": sum(_rows(named, f"head.{layer}", PROTOTYPES) for layer in LAST_LAYERS),
        "classes": next(filter(None, (_rows(named, layer, ("weight",)) for layer in CLASSIFIERS)), 0),
        **guess_backbone(named),
    }
    if is_vision_transformer(named) and "arch" not in about:
        about |= {"width": named["pos_embed"].shape[-1], "depth": count_blocks(named)}
    return {name: value for name, value in about.items() if value}


def _rows(tensors: Mapping[str, Tensor], layer: str, names: tuple[str, ...]) -> int:
    """Rows of the first of these tensors of a layer that there is, 0 without any."""
    found = next((tensors[f"{layer}.{name}"] for name in names if f"{layer}.{name}" in tensors), None)
    return found.shape[0] if found is not None and found.ndim else 0
