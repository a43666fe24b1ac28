"""Describe a weights file, its project and its contents, from names and shapes alone.

Letters: D width, K prototypes, C classes.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dino import checkpoint
from dino.weights.formats import Contents, list_formats
from dino.weights.network import count_blocks, guess_backbone, is_vision_transformer
from dino.weights.read import find_format, list_networks, rename_to_ours
from dino.weights.validate import list_beside_vit

Networks = dict[str, Mapping[str, Tensor]]

# Tensors with one row per prototype: weight norm old, new and folded. The IPU port halves them.
PROTOTYPES = ("weight_v", "parametrizations.weight.original1", "weight")
LAST_LAYERS = ("last_layer", "last_layer1", "last_layer2")
CLASSIFIERS = ("linear.linear", "linear", "head", "fc", "classifier")


def describe_file(word: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a file.

    Args:
        word: The name that it was read from.
        state: The result of `read_weights`.

    Returns:
        `kind`, in words; `networks`, a description of each; and `centre` (K), `epoch`,
        `normalisation`, `scores` and `flags`, if the file holds them.
    """
    networks = list_networks(state)
    loss = state.get("dino_loss")
    center = loss.get("center") if isinstance(loss, Mapping) else state.get("center")
    about = {
        "kind": name_kind(word, state, networks),
        "networks": {name: describe_network(tensors) for name, tensors in networks.items()},
        "centre": center.numel() if isinstance(center, Tensor) else None,
        "epoch": _plain(state.get("epoch")),
        "normalisation": state.get("normalisation"),
        "scores": list_scores(state),
        "flags": {name: _plain(value) for name, value in checkpoint.read_args(state).items()},
    }
    return {name: value for name, value in about.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold. Nested values are shortened, as they may be huge."""
    items = value if isinstance(value, list | tuple) else [value]
    flat = all(item is None or isinstance(item, str | int | float) for item in items)
    return value if flat else reprlib.repr(value)


def list_scores(state: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Scores during training that a checkpoint keeps: before the first step, latest and best."""
    resume = state.get("resume")
    scores = resume.get("scores") if isinstance(resume, Mapping) else None
    parts = scores.items() if isinstance(scores, Mapping) else ()
    found = {
        str(when): {str(name): _plain(value) for name, value in part.items()}
        for when, part in parts
        if isinstance(part, Mapping) and part
    }
    return found or None


def name_kind(word: str, state: Mapping[str, Any], networks: Networks) -> str:
    """Name the kind of a file. The format that claims the word is asked first, then the others."""
    names = frozenset(name for tensors in networks.values() for name in rename_to_ours(tensors))
    contents = Contents(word=word, state=state, networks=networks, names=names)
    claiming = find_format(word)
    formats = [*([claiming] if claiming else []), *list_formats().values()]
    return next(filter(None, (form.kind(contents) for form in formats)), _name_plain(contents))


def _name_plain(contents: Contents) -> str:
    """Name the kind of a file that no format knows."""
    kinds = {
        "plain vision transformer: the original's names, which are timm's too": "pos_embed"
        in contents.names,
        "checkpoint of another network": not {"student", "teacher"}.isdisjoint(contents.networks),
        "plain tensors of another network": bool(contents.names),
    }
    return next((kind for kind, holds in kinds.items() if holds), "no weights")


def describe_network(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Describe a network: tensors of the backbone, number formats, other layers, and its shapes."""
    named, pattern = rename_to_ours(tensors), list_beside_vit()
    beside = [name for name in named if pattern.match(name)]
    backbone = [tensor for name, tensor in named.items() if not pattern.match(name)]
    about: dict[str, Any] = {
        "tensors": len(backbone),
        "numbers": sum(tensor.numel() for tensor in backbone),
        "formats": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in named.values()}),
        "beside": dict(Counter(name.split(".")[0] for name in beside)),
        "prototypes": sum(_rows(named, f"head.{layer}", PROTOTYPES) for layer in LAST_LAYERS),
        "classes": next(
            filter(None, (_rows(named, layer, ("weight",)) for layer in CLASSIFIERS)), 0
        ),
        **guess_backbone(named),
    }
    if is_vision_transformer(named) and "arch" not in about:
        about |= {"width": named["pos_embed"].shape[-1], "depth": count_blocks(named)}
    return {name: value for name, value in about.items() if value}


def _rows(tensors: Mapping[str, Tensor], layer: str, names: tuple[str, ...]) -> int:
    """Count the rows of the first of a layer's tensors that is in the file; 0 without any."""
    tensor = next(
        (tensors[f"{layer}.{name}"] for name in names if f"{layer}.{name}" in tensors), None
    )
    return tensor.shape[0] if tensor is not None and tensor.ndim else 0
