"""The tensors of a file: their names, and the checks that they pass before a run uses them."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dino.errors import CheckpointError
from dino.plain_pickle.limits import MOST_LEVELS

MOST_NAMED = 10  # names of tensors in a message
# What wrappers of torch and of training frameworks put into names: anywhere, and in front.
INSIDE = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
WRAPPERS = r"(?:(?:module|model|net|network)\.)*"
FRONT = re.compile(rf"^{WRAPPERS}(?:backbone\.{WRAPPERS})*")


def strip_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip what DDP, FSDP, torch.compile, activation checkpoints and Lightning add to names.

    Raises:
        CheckpointError: As `join_unique`.
    """
    return join_unique(
        (re.sub(rf"^{WRAPPERS}", "", INSIDE.sub("", name)), tensor)
        for name, tensor in weights.items()
    )


def strip_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip wrappers and leading `backbone.`, in any order, as the original's evaluations do.

    Raises:
        CheckpointError: As `join_unique`.
    """
    return join_unique(
        (FRONT.sub("", INSIDE.sub("", name)), tensor) for name, tensor in weights.items()
    )


def join_unique(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Collect renamed tensors into a dictionary.

    Raises:
        CheckpointError: Two tensors have the same new name, so the intended one is ambiguous.
    """
    unique: dict[str, Tensor] = {}
    for name, tensor in named:
        if name in unique:
            raise CheckpointError(
                f"the weights file holds {name} twice, under different names",
                remedy="remove one of the two",
            )
        unique[name] = tensor
    return unique


def add_prefix(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Prepend `prefix` to every name."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def shorten_names(names: Sequence[str]) -> str:
    """Join the first names of a list, and count the others."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_values(state: Any, origin: object) -> None:
    """Check every tensor of a file, at any depth: a plain one, dense, with its numbers.

    Raises:
        CheckpointError: A tensor is not; the message names it. Or as `walk_tensors`.
    """
    for name, tensor in walk_tensors(state, origin):
        _check_dense(name, tensor, origin)


def walk_tensors(state: Any, origin: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested containers with their places, such as `optimizer.state.0.step`.

    Raises:
        CheckpointError: Containers nest too deep.
    """
    waiting, seen = [("", state, 0)], set[int]()
    while waiting:
        name, value, level = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif level > MOST_LEVELS:
            raise CheckpointError(f"{origin}: it nests more than {MOST_LEVELS} levels deep")
        elif id(value) not in seen:
            parts = [(f"{name}.{key}".lstrip("."), part) for key, part in _list_parts(value)]
            if parts:
                seen.add(id(value))
            waiting.extend((path, part, level + 1) for path, part in parts)


def _list_parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        yield from ((_name_key(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple | set):
        yield from enumerate(value)


def _name_key(key: Any) -> str:
    return key if isinstance(key, str) else str(key) if isinstance(key, int) else "?"


def _check_dense(name: str, tensor: Tensor, origin: object) -> None:
    if type(tensor) not in {Tensor, nn.Parameter}:
        got = type(tensor).__name__
    elif tensor.is_meta:
        got = "meta"
    elif tensor.is_quantized:
        got = str(tensor.dtype)
    elif tensor.is_nested:
        got = "nested"
    elif tensor.layout != torch.strided:
        got = str(tensor.layout)
    else:
        return
    raise CheckpointError(
        f"{origin}: {name} must be a dense tensor (got {got})",
        remedy="save it dense, with its numbers",
    )


def check_tensor(
    name: str, value: Any, like: Tensor, origin: object, *, finite: bool = True
) -> Tensor:
    """Check a tensor that replaces another: dense, of its shape and kind, without NaN if `finite`.

    Returns:
        The tensor in the dtype of `like`, detached; it may still share memory or repeat elements.

    Raises:
        CheckpointError: It does not fit; the message names it.
    """
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{origin}: {name} must be a tensor (got {type(value).__name__})")
    _check_dense(name, value, origin)
    if value.shape != like.shape:
        raise CheckpointError(
            f"{origin}: {name} must be {tuple(like.shape)} (got {tuple(value.shape)})"
        )
    if name_numbers(value) != name_numbers(like):
        raise CheckpointError(
            f"{origin}: {name} must hold {name_numbers(like)} (got {name_numbers(value)})"
        )
    converted = value.detach().to(like.dtype)
    if finite and not is_finite(converted):
        raise CheckpointError(f"{origin}: {name} holds NaN or infinite numbers")
    return converted


def check_tensors(
    values: Any, like: Mapping[str, Tensor], what: str, origin: object
) -> dict[str, Tensor]:
    """Check tensors by name, each as in `check_tensor`; a file may hold more.

    Args:
        values: Part of a file.
        like: The tensors that are needed.
        what: Name of the part, for errors.
        origin: The file, for errors.

    Raises:
        CheckpointError: A tensor is missing or does not fit.
    """
    part = check_mapping(values, what, origin)
    missing = [name for name in like if name not in part]
    if missing:
        raise CheckpointError(
            f"{origin}: its {what} lacks {len(missing)} of {len(like)} tensors: "
            f"{shorten_names(missing)}"
        )
    return {
        name: check_tensor(f"{what}.{name}", part[name], tensor, origin)
        for name, tensor in like.items()
    }


def check_mapping(value: Any, what: str, origin: object) -> Mapping[Any, Any]:
    """Return a part of a file that is a dictionary.

    Raises:
        CheckpointError: It is not one.
    """
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"{origin}: its {what} must be a dictionary (got {type(value).__name__})"
        )
    return value


def check_count(value: Any, what: str, origin: object) -> int:
    """Return a part of a file that is a whole number from 0.

    Raises:
        CheckpointError: It is not one.
    """
    if type(value) is not int or value < 0:
        got = value if type(value) is int else type(value).__name__
        raise CheckpointError(f"{origin}: its {what} must be a whole number from 0 (got {got})")
    return value


def check_number(value: Any, what: str, origin: object) -> float:
    """Return a part of a file that is a finite number.

    Raises:
        CheckpointError: It is not one.
    """
    if isinstance(value, Tensor) and not value.ndim and name_numbers(value) != "complex numbers":
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{origin}: its {what} must be a finite number")
    return float(value)


def is_finite(tensor: Tensor) -> bool:
    """Whether a dense tensor on the host holds neither NaN nor infinite numbers."""
    if not tensor.is_floating_point():
        return True
    # A sum is read ten times faster than a mask is written; it overflows rarely.
    numbers = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(numbers.sum(dtype=torch.float64).isfinite()) or bool(numbers.isfinite().all())


def name_numbers(tensor: Tensor) -> str:
    """Name the kind of a tensor's numbers, whatever their width."""
    if tensor.is_complex():
        return "complex numbers"
    if tensor.dtype == torch.bool:
        return "truth values"
    return "floating-point numbers" if tensor.is_floating_point() else "integers"
