"""Checkpoints of the published IPU code as ours, and ours as its.

There both networks and both halves of each last layer are in one dictionary, the optimizer's state bears the device's
names, the center stands beside them and the epoch is the last finished one. What has no place in our form (number
format, the compiled optimizer's own values) is kept in it under `ipu` until training goes on, so that the way back
gives the same file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dino import checkpoint
from dino.errors import CheckpointError

NETWORKS = ("student", "teacher")
HALVES = ("last_layer1", "last_layer2")
KEPT = "ipu"  # where our form keeps what has no place in it
STATE = {
    "exp_avg": "Accl1___",
    "exp_avg_sq": "Accl2___",
    "step": "Step___",
}  # the device's names of AdamW's state
NEEDED = ("model", "optimizer", "center", "epoch")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm: no parameters


def is_published(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of the published IPU code."""
    return all(key in state for key in NEEDED)


def read_published(state: Mapping[str, Any]) -> dict[str, Any]:
    """Ours from theirs; all weights float32.

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
        "student": checkpoint.add_prefix("module.", networks["student"]),
        "teacher": networks["teacher"],
        "optimizer": _read_optimizer(state["optimizer"], networks["student"], fixed),
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
    """Theirs from ours or the original's.

    Raises:
        CheckpointError: It is no checkpoint of training, or of one that the published code has no place for.
    """
    missing = [name for name in (*NETWORKS, "optimizer", "epoch", "dino_loss") if name not in ours]
    if missing:
        raise CheckpointError(f"no checkpoint of training: it lacks {', '.join(missing)}")
    kept = ours.get(KEPT, {})
    for network in NETWORKS:
        _check_network(network, ours[network])
    _check_optimizer(ours["optimizer"])
    networks = {network: _without_module(ours[network]) for network in NETWORKS}
    model = {
        name: tensor for network in NETWORKS for name, tensor in _split(networks[network], network)
    }
    model = {
        name: tensor.to(kept.get("types", {}).get(name, tensor.dtype))
        for name, tensor in model.items()
    }
    optimizer = _write_optimizer(ours["optimizer"], networks["student"], checkpoint.read_args(ours))
    optimizer |= {
        part: {**optimizer[part], **values} for part, values in kept.get("entries", {}).items()
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
        raise CheckpointError(f"no checkpoint of training: its {network} holds no weights by name")
    tensors = _without_module(weights)
    last = tensors.get("head.last_layer.weight_v")
    if "backbone.pos_embed" not in tensors or last is None:
        raise CheckpointError(
            f"the {network} is no vision transformer with DINO's head",
            remedy="the IPU code has no other",
        )
    if len(last) % len(HALVES):
        raise CheckpointError(
            f"the {network} has {len(last)} prototypes, which the IPU code halves: none of an odd number"
        )


def _check_optimizer(optimizer: Any) -> None:
    groups = optimizer.get("param_groups", ()) if isinstance(optimizer, Mapping) else ()
    moments = optimizer.get("state", {}).values() if groups else ()
    if len(groups) != 2 or not all(each.keys() >= STATE.keys() for each in moments):
        raise CheckpointError(
            "the optimizer is not AdamW with the two groups of DINO, which is all the IPU code reads",
            remedy="convert a checkpoint of `optimizer` adamw",
        )


def _join(model: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """One network under our names, its last layer in one piece."""
    joined = {
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
    if not joined:
        raise CheckpointError(f"the checkpoint's model holds no {network}")
    hidden = {f"head.{name}": t.float() if t.is_floating_point() else t for name, t in head.items()}
    return {**joined, **hidden, **last}


def _split(tensors: Mapping[str, Tensor], network: str) -> Iterator[tuple[str, Tensor]]:
    """One network under their names, its last layer in halves: the first's rows, then the second's."""
    yield from ((f"{network}.{name}", tensor) for name, tensor in _below(tensors, "backbone."))
    yield from (
        (f"{network}_head.{name}", tensor)
        for name, tensor in _below(tensors, "head.")
        if not name.startswith("last_layer.")
    )
    last = dict(_below(tensors, "head.last_layer."))
    for place, half in enumerate(HALVES):
        yield from (
            (f"{network}_head.{half}.{part}", last[part].chunk(2)[place].clone())
            for part in sorted(last)
        )


def _their_names(name: str) -> list[str]:
    """Their names of one of our parameters of the student: one, or two halves."""
    if name.startswith("backbone."):
        return [f"student.{name.removeprefix('backbone.')}"]
    names = (
        [name.replace("last_layer", half) for half in HALVES] if "last_layer" in name else [name]
    )
    return [f"student_{each}" for each in names]


def _group(student: Mapping[str, Tensor], fixed_norm: bool) -> list[list[str]]:
    """Our optimizer's two groups by name: all that decays, then vectors and biases (`training/optim.py`)."""
    names = [
        n
        for n in student
        if not n.endswith(STATISTICS) and not (fixed_norm and n.endswith("weight_g"))
    ]
    plain = [name for name in names if name.endswith(".bias") or student[name].ndim == 1]
    return [[name for name in names if name not in plain], plain]


def _read_optimizer(
    theirs: Mapping[str, Any], student: Mapping[str, Tensor], fixed_norm: bool
) -> dict[str, Any]:
    found = theirs.get("ipu_state") or {}
    groups = _group(student, fixed_norm)
    state: dict[int, dict[str, Tensor]] = {}
    for place, name in enumerate(name for group in groups for name in group):
        theirs_of = {
            key: [f"{prefix}{n}" for n in _their_names(name)] for key, prefix in STATE.items()
        }
        if all(each in found for names in theirs_of.values() for each in names):
            parts = {key: [found[each] for each in names] for key, names in theirs_of.items()}
            moments = {key: torch.cat(parts[key]).float() for key in ("exp_avg", "exp_avg_sq")}
            state[place] = {**moments, "step": parts["step"][0].reshape(()).float()}
    first = theirs["param_groups"][0]
    ends = [0, len(groups[0]), len(groups[0]) + len(groups[1])]
    return {
        "state": state,
        "param_groups": [
            {"lr": first["lr"], "weight_decay": decay, "params": list(range(start, end))}
            for start, end, decay in zip(ends, ends[1:], (first["weight_decay"], 0.0), strict=False)
        ],
    }


def _write_optimizer(
    ours: Mapping[str, Any], student: Mapping[str, Tensor], args: Mapping[str, Any]
) -> dict[str, Any]:
    decayed, plain = ours["param_groups"]
    order = [
        name for group in _group(student, _is_norm_fixed(ours, student, args)) for name in group
    ]
    state: dict[str, Tensor] = {}
    for place, moments in ours["state"].items():
        theirs = _their_names(order[int(place)])
        for key, prefix in STATE.items():
            value = torch.as_tensor(moments[key], dtype=torch.float32)
            halves = value.chunk(len(theirs)) if value.ndim else [value] * len(theirs)
            state |= {
                f"{prefix}{name}": half.clone() for name, half in zip(theirs, halves, strict=True)
            }
    groups: list[dict[str, Any]] = []
    names = [[n for name in part for n in _their_names(name)] for part in _their_groups(student)]
    for own, group in zip((decayed, plain, decayed, decayed), names, strict=True):
        start = sum(len(earlier["params"]) for earlier in groups)
        numbers = {"lr": float(own["lr"]), "weight_decay": float(own["weight_decay"])}
        groups.append({**numbers, "params": list(range(start, start + len(group)))})
    param = {
        f"{kind}___specific___{name}": torch.tensor(numbers[key])
        for numbers, group in zip(groups, names, strict=True)
        for name in group
        for kind, key in (("learningRate", "lr"), ("weightDecay", "weight_decay"))
    }
    return {
        "state": {},
        "param_groups": groups,
        "ipu_state": state or None,
        "ipu_param": {**param, "lossScaling_FLOAT": torch.tensor(1.0)} if state else None,
    }


def _is_norm_fixed(
    ours: Mapping[str, Any], student: Mapping[str, Tensor], args: Mapping[str, Any]
) -> bool:
    """Whether the optimizer leaves the last layer's norms out: as the options say, or as the number of parameters."""
    count = sum(len(group["params"]) for group in ours["param_groups"])
    return bool(args.get("norm_last_layer", count < sum(map(len, _group(student, False)))))


def _their_groups(student: Mapping[str, Tensor]) -> list[list[str]]:
    """Their four groups: matrices, vectors, norms and directions of the last layer."""
    decayed, plain = _group(student, False)
    last = [[name for name in decayed if name.endswith(part)] for part in ("weight_g", "weight_v")]
    return [[name for name in decayed if not name.endswith(("weight_g", "weight_v"))], plain, *last]


def _find_lost(theirs: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> dict[str, Any]:
    """What the way there and back would lose, in the form that `write_published` puts back."""
    types = {
        name: t.dtype
        for name, t in theirs["model"].items()
        if t.dtype != rebuilt["model"][name].dtype
    }
    entries, optimizer = {}, {}
    for part, values in theirs["optimizer"].items():
        again = rebuilt["optimizer"].get(part)
        if (
            isinstance(values, Mapping)
            and isinstance(again, Mapping)
            and again.keys() <= values.keys()
        ):
            entries[part] = {
                name: value for name, value in values.items() if not _same(value, again.get(name))
            }
        elif not _same(values, again):
            optimizer[part] = values
    more = {name: value for name, value in theirs.items() if name not in rebuilt}
    found = {
        "types": types,
        "entries": {p: v for p, v in entries.items() if v},
        "optimizer": optimizer,
        "more": more,
    }
    return {name: part for name, part in found.items() if part}


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
