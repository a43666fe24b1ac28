"""The state of an optimizer in a file, checked against the parameters that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dino.errors import CheckpointError
from dino.stored import check_mapping, check_number, check_tensor

Moments = dict[str, Tensor]


def check_optimizer(
    stored: Any, optimizer: torch.optim.Optimizer, names: Sequence[str], origin: object
) -> list[Moments]:
    """Check a stored optimizer's groups and moments, of ours or of torch.

    A kernel takes the sizes from the parameter and the address from the moment, so a moment of
    another shape would be written beyond its end.

    Args:
        stored: Part of a file.
        optimizer: The optimizer that continues it.
        names: Names of a parameter's moments.
        origin: The file, for errors.

    Returns:
        For each parameter, in the order of the groups, the moments that the file holds, with the
        parameter's shape and dtype, and `step` () float32. They may share memory or repeat numbers.

    Raises:
        CheckpointError: A part is missing or does not fit.
    """
    state = check_mapping(stored, "optimizer", origin)
    for key in ("state", "param_groups"):
        if key not in state:
            raise CheckpointError(f"{origin}: its optimizer lacks {key}")
    indices = _list_indices(state["param_groups"], optimizer, origin)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = check_mapping(state["state"], "optimizer.state", origin)
    unknown = [key for key in entries if type(key) is not int or key not in indices]
    if unknown:
        raise CheckpointError(
            f"{origin}: its optimizer has a state of {len(unknown)} unknown parameters"
        )
    return [
        _check_moments(entries.get(index, {}), index, parameter, names, origin)
        for index, parameter in zip(indices, parameters, strict=True)
    ]


def copy_moments(
    stored: Any, optimizer: torch.optim.Optimizer, names: Sequence[str], origin: object
) -> dict[Tensor, Moments]:
    """Copy a stored optimizer's moments to memory of their own, laid out as their parameters.

    Args and errors are those of `check_optimizer`.

    Returns:
        The moments of each parameter, on its device.
    """
    found = check_optimizer(stored, optimizer, names, origin)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        parameter: {
            name: value.to(parameter.device, copy=True)
            if name == "step"
            else torch.zeros_like(parameter).copy_(value)
            for name, value in moments.items()
        }
        for parameter, moments in zip(parameters, found, strict=True)
    }


def _list_indices(groups: Any, optimizer: torch.optim.Optimizer, origin: object) -> list[int]:
    """List the numbers that the file gives to the parameters."""
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    lists = [
        group.get("params") if isinstance(group, Mapping) else None
        for group in (groups if isinstance(groups, list) else ())
    ]
    found: list[list[Any]] = [part for part in lists if isinstance(part, list)]
    if len(found) != len(lists) or [len(part) for part in found] != sizes:
        raise CheckpointError(
            f"{origin}: its optimizer must have groups of {sizes} parameters, as this network has"
        )
    indices = [index for part in found for index in part]
    if any(type(index) is not int for index in indices) or len(set(indices)) != len(indices):
        raise CheckpointError(f"{origin}: its optimizer must number each parameter once")
    return indices


def _check_moments(
    entry: Any, index: int, parameter: Tensor, names: Sequence[str], origin: object
) -> Moments:
    what = f"optimizer.state.{index}"
    held = check_mapping(entry, what, origin)
    moments = {
        name: check_tensor(f"{what}.{name}", held[name], parameter, origin)
        for name in names
        if held.get(name) is not None
    }
    if held.get("step") is not None:
        step = check_number(held["step"], f"{what}.step", origin)
        if step < 0:
            raise CheckpointError(f"{origin}: its {what}.step must be at least 0 (got {step:g})")
        moments["step"] = torch.tensor(step, dtype=torch.float32, device="cpu")
    return moments
