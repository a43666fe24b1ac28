"""Convert checkpoints of the published IPU code to ours, and back.

Their form holds both networks and both halves of each last layer in one dictionary. The optimizer
state has the device's names, the center is a separate entry, and the epoch is the last complete
one. Our form keeps what it cannot express (number format, values of the compiled optimizer) under
`ipu` until training continues, so that the conversion back returns the same file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dino import checkpoint, stored
from dino.errors import CheckpointError
from dino.weights.ipu_optimizer import HALVES, check_optimizer, read_optimizer, write_optimizer

NETWORKS = ("student", "teacher")
KEPT = "ipu"  # key under which our form keeps what it cannot express
NEEDED = ("model", "optimizer", "center", "epoch")


def is_published(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has the form of the published IPU code."""
    return all(key in state for key in NEEDED)


def read_published(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert their form to ours, with float32 weights.

    Raises:
        CheckpointError: A network or a half of its last layer is missing.
    """
    networks = {network: _join(state["model"], network) for network in NETWORKS}
    fixed = all(
        bool((tensor == 1).all())
        for name, tensor in networks["student"].items()
        if "weight_g" in name
    )
    ours = {
        "student": stored.add_prefix("module.", networks["student"]),
        "teacher": networks["teacher"],
        "optimizer": read_optimizer(state["optimizer"], networks["student"], fixed),
        "epoch": state["epoch"] + 1,
        "args": {
            "optimizer": "adamw",
            "norm_last_layer": fixed,
            "out_dim": state["center"].shape[-1],
        },
        "dino_loss": {"center": state["center"]},
    }
    kept = _find_lost(state, write_published(ours))
    return {**ours, KEPT: kept} if kept else ours


def write_published(ours: Mapping[str, Any]) -> dict[str, Any]:
    """Convert our form, or the original's, to theirs.

    Raises:
        CheckpointError: The file is not a training checkpoint, or the IPU code cannot hold it.
    """
    missing = [name for name in (*NETWORKS, "optimizer", "epoch", "dino_loss") if name not in ours]
    if missing:
        raise CheckpointError(f"not a training checkpoint: it lacks {', '.join(missing)}")
    kept = ours.get(KEPT, {})
    for network in NETWORKS:
        _check_network(network, ours[network])
    check_optimizer(ours["optimizer"])
    networks = {network: _without_module(ours[network]) for network in NETWORKS}
    model = {
        name: tensor for network in NETWORKS for name, tensor in _split(networks[network], network)
    }
    model = {
        name: tensor.to(kept.get("types", {}).get(name, tensor.dtype))
        for name, tensor in model.items()
    }
    optimizer = write_optimizer(ours["optimizer"], networks["student"], checkpoint.read_args(ours))
    optimizer |= {
        name: {**optimizer[name], **values} for name, values in kept.get("entries", {}).items()
    }
    optimizer |= kept.get("optimizer", {})
    center = ours["dino_loss"]["center"]
    return {
        "model": model,
        "optimizer": optimizer,
        "center": center,
        "epoch": ours["epoch"] - 1,
        **kept.get("more", {}),
    }


def _check_network(network: str, weights: Any) -> None:
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"not a training checkpoint: its {network} holds no weights by name")
    tensors = _without_module(weights)
    last = tensors.get("head.last_layer.weight_v")
    if "backbone.pos_embed" not in tensors or last is None:
        raise CheckpointError(
            f"the {network} must be a vision transformer with DINO's head",
            remedy="the IPU code supports no other network",
        )
    if len(last) % len(HALVES):
        raise CheckpointError(
            f"the {network} must have an even number of prototypes for the IPU code "
            f"(got {len(last)})"
        )


def _join(model: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """Return one network under our names, and join its last layer."""
    backbone = {
        f"backbone.{n}": t.float() for n, t in _below(model, f"{network}.") if t.is_floating_point()
    }
    head = dict(_below(model, f"{network}_head."))
    try:
        last = {
            f"head.last_layer.{part}": torch.cat(
                [head.pop(f"{half}.{part}") for half in HALVES]
            ).float()
            for part in ("weight_g", "weight_v")
        }
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint's model lacks {network}_head.{error.args[0]}"
        ) from error
    if not backbone:
        raise CheckpointError(f"the checkpoint's model holds no {network}")
    hidden = {f"head.{name}": t.float() if t.is_floating_point() else t for name, t in head.items()}
    return {**backbone, **hidden, **last}


def _split(tensors: Mapping[str, Tensor], network: str) -> Iterator[tuple[str, Tensor]]:
    """Yield one network under their names, its last layer in halves of its rows."""
    yield from ((f"{network}.{name}", tensor) for name, tensor in _below(tensors, "backbone."))
    yield from (
        (f"{network}_head.{name}", tensor)
        for name, tensor in _below(tensors, "head.")
        if not name.startswith("last_layer.")
    )
    last = dict(_below(tensors, "head.last_layer."))
    for index, half in enumerate(HALVES):
        yield from (
            (f"{network}_head.{half}.{part}", last[part].chunk(2)[index].clone())
            for part in sorted(last)
        )


def _find_lost(theirs: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> dict[str, Any]:
    """Find what a round trip would lose, in the form that `write_published` restores."""
    types = {
        name: t.dtype
        for name, t in theirs["model"].items()
        if t.dtype != rebuilt["model"][name].dtype
    }
    entries, optimizer = {}, {}
    for key, values in theirs["optimizer"].items():
        again = rebuilt["optimizer"].get(key)
        if (
            isinstance(values, Mapping)
            and isinstance(again, Mapping)
            and again.keys() <= values.keys()
        ):
            entries[key] = {
                name: value for name, value in values.items() if not _same(value, again.get(name))
            }
        elif not _same(values, again):
            optimizer[key] = values
    more = {name: value for name, value in theirs.items() if name not in rebuilt}
    lost = {
        "types": types,
        "entries": {key: values for key, values in entries.items() if values},
        "optimizer": optimizer,
        "more": more,
    }
    return {name: values for name, values in lost.items() if values}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return type(one) is type(other) and one == other


def _below(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    yield from (
        (name.removeprefix(prefix), tensor)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    )


def _without_module(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
