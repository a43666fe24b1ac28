"""The optimizer state in checkpoints of the published IPU code, converted to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dino.errors import CheckpointError

HALVES = ("last_layer1", "last_layer2")
# The device's names of AdamW's state.
STATE = {"exp_avg": "Accl1___", "exp_avg_sq": "Accl2___", "step": "Step___"}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm: no parameters


def check_optimizer(optimizer: Any) -> None:
    """Check that the optimizer is AdamW with DINO's two groups.

    Raises:
        CheckpointError: The IPU code cannot read the optimizer.
    """
    groups = optimizer.get("param_groups", ()) if isinstance(optimizer, Mapping) else ()
    moments = optimizer.get("state", {}).values() if groups else ()
    if len(groups) != 2 or not all(values.keys() >= STATE.keys() for values in moments):
        raise CheckpointError(
            "the optimizer must be AdamW with the two groups of DINO for the IPU code",
            remedy="convert a checkpoint of `optimizer` adamw",
        )


def read_optimizer(
    theirs: Mapping[str, Any], student: Mapping[str, Tensor], fixed_norm: bool
) -> dict[str, Any]:
    """Convert their optimizer to ours. Its state is empty if they have none for the student."""
    stored = theirs.get("ipu_state") or {}
    groups = _group(student, fixed_norm)
    state: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(name for group in groups for name in group):
        their_keys = {
            key: [f"{prefix}{n}" for n in _their_names(name)] for key, prefix in STATE.items()
        }
        if all(key in stored for keys in their_keys.values() for key in keys):
            halves = {name: [stored[key] for key in keys] for name, keys in their_keys.items()}
            moments = {key: torch.cat(halves[key]).float() for key in ("exp_avg", "exp_avg_sq")}
            state[index] = {**moments, "step": halves["step"][0].reshape(()).float()}
    first = theirs["param_groups"][0]
    ends = [0, len(groups[0]), len(groups[0]) + len(groups[1])]
    return {
        "state": state,
        "param_groups": [
            {"lr": first["lr"], "weight_decay": decay, "params": list(range(start, end))}
            for start, end, decay in zip(ends, ends[1:], (first["weight_decay"], 0.0), strict=False)
        ],
    }


def write_optimizer(
    ours: Mapping[str, Any], student: Mapping[str, Tensor], args: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert our optimizer to theirs: four groups, and the state under the device's names."""
    decayed, plain = ours["param_groups"]
    order = [
        name for group in _group(student, _is_norm_fixed(ours, student, args)) for name in group
    ]
    state: dict[str, Tensor] = {}
    for index, moments in ours["state"].items():
        theirs = _their_names(order[int(index)])
        for key, prefix in STATE.items():
            value = torch.as_tensor(moments[key], dtype=torch.float32)
            halves = value.chunk(len(theirs)) if value.ndim else [value] * len(theirs)
            state |= {
                f"{prefix}{name}": half.clone() for name, half in zip(theirs, halves, strict=True)
            }
    groups: list[dict[str, Any]] = []
    names = [[n for name in group for n in _their_names(name)] for group in _their_groups(student)]
    for own, group in zip((decayed, plain, decayed, decayed), names, strict=True):
        start = sum(len(earlier["params"]) for earlier in groups)
        numbers = {"lr": float(own["lr"]), "weight_decay": float(own["weight_decay"])}
        groups.append({**numbers, "params": list(range(start, start + len(group)))})
    param = {
        f"{their_key}___specific___{name}": torch.tensor(numbers[key])
        for numbers, group in zip(groups, names, strict=True)
        for name in group
        for their_key, key in (("learningRate", "lr"), ("weightDecay", "weight_decay"))
    }
    return {
        "state": {},
        "param_groups": groups,
        "ipu_state": state or None,
        "ipu_param": {**param, "lossScaling_FLOAT": torch.tensor(1.0)} if state else None,
    }


def _their_names(name: str) -> list[str]:
    """Return their names of one of our student's parameters: one name, or one per half."""
    if name.startswith("backbone."):
        return [f"student.{name.removeprefix('backbone.')}"]
    names = (
        [name.replace("last_layer", half) for half in HALVES] if "last_layer" in name else [name]
    )
    return [f"student_{half_name}" for half_name in names]


def _group(student: Mapping[str, Tensor], fixed_norm: bool) -> list[list[str]]:
    """Return our optimizer's two groups (training/optim.py): decayed, then vectors and biases."""
    names = [
        n
        for n in student
        if not n.endswith(STATISTICS) and not (fixed_norm and n.endswith("weight_g"))
    ]
    plain = [name for name in names if name.endswith(".bias") or student[name].ndim == 1]
    return [[name for name in names if name not in plain], plain]


def _is_norm_fixed(
    ours: Mapping[str, Any], student: Mapping[str, Tensor], args: Mapping[str, Any]
) -> bool:
    """Whether the optimizer omits the last layer's norms, by the options or the parameter count."""
    count = sum(len(group["params"]) for group in ours["param_groups"])
    return bool(args.get("norm_last_layer", count < sum(map(len, _group(student, False)))))


def _their_groups(student: Mapping[str, Tensor]) -> list[list[str]]:
    """Return their four groups: matrices, vectors, norms and directions of the last layer."""
    decayed, plain = _group(student, False)
    last = [[name for name in decayed if name.endswith(part)] for part in ("weight_g", "weight_v")]
    return [[name for name in decayed if not name.endswith(("weight_g", "weight_v"))], plain, *last]
