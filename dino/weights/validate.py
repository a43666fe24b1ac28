"""Validate a weights file once after it is read, whoever wrote it, and match it to a network.

Later code can rely on it: each tensor of the network is present with its shape, and the rest of the
file is listed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dino import checkpoint, stored
from dino.errors import CheckpointError, WeightsError
from dino.models.zoo import open_library
from dino.stored import check_values, is_finite, name_numbers, shorten_names
from dino.weights.formats import list_formats

# Settings of a backbone in the args of a file, in addition to `arch`.
SIZES = ("patch_size", "in_chans", "global_crops_size")
# Patterns of the tensors that a file may hold in addition to the backbone.
NOTHING = re.compile("(?!)")
ANYTHING = re.compile("")
HEADS = r"(head|linear|fc|classifier|pooler|projector|projection_head|predictor|prototypes)\."


def validate(state: Mapping[Any, Any], origin: Path | str) -> dict[str, Any]:
    """Validate the contents of a file, and detach every tensor.

    Args:
        state: The contents of the file.
        origin: The file, for errors.

    Raises:
        CheckpointError: A name is not a str, a tensor is not a plain dense one, or an option or the
            normalization has a wrong type.
    """
    for name, value in checkpoint.read_args(state).items():
        if name in SIZES:
            is_valid, expected = type(value) is int and value > 0, "a number of 1 or more"
        else:
            is_valid, expected = name != "arch" or isinstance(value, str), "a name"
        if value is not None and not is_valid:
            raise CheckpointError(
                f"{origin}: {name} in its args must be {expected} (got {type(value).__name__})"
            )
    if state.get("normalisation") is not None:
        _check_normalization(state["normalisation"], origin)
    check_values(state, origin)
    return {
        name: _admit_tensors(value, origin) for name, value in _admit_tensors(state, origin).items()
    }


def check_network(tensors: Mapping[str, Any], origin: Path | str) -> Mapping[str, Tensor]:
    """Return a network's tensors unchanged.

    Raises:
        WeightsError: A value is not a tensor.
    """
    other = next((name for name, value in tensors.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise WeightsError(
            f"{origin}: {other} must be a tensor (got {type(tensors[other]).__name__})"
        )
    return tensors


def list_tensors(state: Mapping[str, Any], origin: Path | str) -> dict[str, Tensor]:
    """List a file's tensors by name without `module.` and `backbone.`.

    They are in its `state_dict`, if it has one, or otherwise at the top level.

    Raises:
        CheckpointError: `state_dict` is not a dictionary, or two names without prefix are equal.
    """
    held = read_part(state, "state_dict", origin) if "state_dict" in state else state
    return stored.strip_prefixes(
        {name: value for name, value in held.items() if isinstance(value, Tensor)}
    )


def read_center(state: Mapping[str, Any], prototypes: int, origin: Path | str) -> Tensor | None:
    """Read the center (1, K) in a file's `dino_loss`, for K `prototypes`. None if it has no center.

    Raises:
        CheckpointError: The center has another type or shape.
    """
    center = read_part(state, "dino_loss", origin).get("center")
    if center is not None and (not isinstance(center, Tensor) or center.shape != (1, prototypes)):
        got = tuple(center.shape) if isinstance(center, Tensor) else type(center).__name__
        raise CheckpointError(
            f"{origin}: the center of its dino_loss must be (1, {prototypes}) (got {got})",
            remedy="name another file",
        )
    return center


def read_part(state: Mapping[str, Any], name: str, origin: Path | str) -> Mapping[str, Any]:
    """Return the dictionary that a file holds under `name`, empty if the key is missing.

    Raises:
        CheckpointError: The value is not a dictionary.
    """
    part = {} if state.get(name) is None else state[name]
    if not isinstance(part, Mapping):
        raise CheckpointError(
            f"{origin}: its {name} must be a dictionary (got {type(part).__name__})",
            remedy="save it as one, or name another file",
        )
    return part


def check_square(state: Mapping[str, Any], origin: Path | str) -> None:
    """Refuse weights that are stored for oblong images: their grid would be misread.

    Raises:
        WeightsError: The sides in the file's args differ.
    """
    sides = checkpoint.read_args(state).get("image_size")
    if isinstance(sides, list) and len(set(sides)) > 1:
        raise WeightsError(
            f"{origin} must be stored for square images (got {' x '.join(map(str, sides))} pixels)"
        )


@dataclass(frozen=True)
class Matched:
    """A file's tensors, divided into those of a network and the others."""

    tensors: dict[str, Tensor]  # one for each tensor of the network
    unexpected: dict[str, Tensor]  # the others

    def describe_unexpected(self) -> str:
        """Count the unused tensors by the first word of their names, as the end of a log line."""
        counts = Counter(name.split(".")[0] for name in self.unexpected)
        named = ", ".join(f"{name} ({count})" for name, count in counts.items())
        return f"; not part of it: {named}" if named else ""


def match(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    origin: str,
    beside: re.Pattern[str] = ANYTHING,
) -> Matched:
    """Find every tensor of a network in a file.

    Args:
        module: The network.
        tensors: Tensors of the file, under our names.
        origin: The file, for the error.
        beside: Pattern of the tensors that the file may hold in addition.

    Raises:
        WeightsError: Tensors are missing, have another shape or kind of number, hold NaN, or are
            foreign. The text lists them.
    """
    needed = module.state_dict()
    if not needed.keys() <= tensors.keys() and any("cls_attn_blocks" in name for name in needed):
        xcit = open_library("timm", purpose="XCiT").models.xcit
        tensors = xcit.checkpoint_filter_fn(dict(tensors), module)
    wrong = [
        f"{name} ({_describe_misfit(tensors.get(name), tensor)})"
        for name, tensor in needed.items()
        if _describe_misfit(tensors.get(name), tensor)
    ]
    unexpected = {name: tensor for name, tensor in tensors.items() if name not in needed}
    if wrong:
        others = f"; the file has {shorten_names(list(unexpected))}" if unexpected else ""
        raise WeightsError(
            f"{origin}: {len(wrong)} of {len(needed)} backbone tensors do not fit, nothing was "
            f"loaded: {shorten_names(wrong)}{others}",
            remedy="check `arch`, `patch_size` and `checkpoint_key`",
        )
    check_finite({name: tensors[name] for name in needed}, origin)
    foreign = [name for name in unexpected if not beside.match(name)]
    if foreign:
        raise WeightsError(
            f"{origin}: it is another network, with {len(foreign)} tensors that this one lacks, "
            f"nothing was loaded: {shorten_names(foreign)}",
            remedy="check `arch`",
        )
    return Matched({name: tensors[name] for name in needed}, unexpected)


def check_finite(tensors: Mapping[str, Tensor], origin: object) -> None:
    """Check that weights are numbers, as a run that diverged leaves none.

    Raises:
        WeightsError: They hold NaN or infinite numbers; the text lists the tensors.
    """
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise WeightsError(
            f"{origin}: {len(broken)} of {len(tensors)} tensors hold NaN or infinite numbers: "
            f"{shorten_names(broken)}",
            remedy="use a checkpoint from before",
        )


def _describe_misfit(stored: Tensor | None, needed: Tensor) -> str:
    """Say why a tensor does not fit; empty if it does."""
    if stored is None:
        return "missing"
    if stored.shape != needed.shape:
        return f"must be {tuple(needed.shape)}, got {tuple(stored.shape)}"
    if needed.is_floating_point() and not stored.is_floating_point():
        return f"must hold {name_numbers(needed)}, got {name_numbers(stored)}"
    return ""


def list_beside_vit() -> re.Pattern[str]:
    """Return the pattern of tensors next to a ViT: heads, and what only training needs.

    A file with any other tensor is another network, which would compute other features.
    """
    training_only = [form.beside for form in list_formats().values() if form.beside]
    return re.compile("|".join([HEADS, *training_only]))


def _admit_tensors(values: Any, origin: Path | str) -> Any:
    """Check the names of a dictionary of tensors, and detach them: a parameter requires gradients.

    Anything else is returned unchanged.
    """
    if not isinstance(values, Mapping) or not any(
        isinstance(value, Tensor) for value in values.values()
    ):
        return values
    wrong = next((type(name).__name__ for name in values if not isinstance(name, str)), None)
    if wrong:
        raise CheckpointError(f"{origin}: the name of a tensor must be a str (got {wrong})")
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def _check_normalization(stored: Any, origin: Path | str) -> None:
    values: list[Any] = (
        [stored.get(name) for name in ("mean", "std")] if isinstance(stored, Mapping) else [None]
    )
    are_numbers = all(
        isinstance(numbers, list | tuple) and numbers and all(map(_is_number, numbers))
        for numbers in values
    )
    if not are_numbers or len(values[0]) != len(values[1]) or min(values[1]) <= 0:
        raise CheckpointError(
            f"{origin}: its normalization must hold a mean and a std, each with one number "
            "per channel"
        )


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and math.isfinite(value)
