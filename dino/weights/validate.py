"""What a weights file may hold, checked once after it is read, whoever wrote it; and what a network needs of it.

What follows can rely on it: each tensor of a network is found, with its shape, and what else the file holds is named.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino import checkpoint
from dino.errors import CheckpointError, WeightsError
from dino.models.zoo import open_library
from dino.weights.formats import list_formats

SIZES = (
    "patch_size",
    "in_chans",
    "global_crops_size",
)  # what args say of a backbone, beside its `arch`
# What may lie beside a backbone.
NOTHING = re.compile("(?!)")
ANYTHING = re.compile("")
HEADS = r"(head|linear|fc|classifier|pooler|projector|projection_head|predictor|prototypes)\."


def admit(state: Mapping[Any, Any], origin: Path | str) -> dict[str, Any]:
    """A file's content with every tensor detached, if it is what its readers take for granted.

    Args:
        state: What a file holds.
        origin: The file, for errors.

    Raises:
        CheckpointError: A name that is no text, a tensor without its numbers at hand, or options or a normalization of
            other types than they have.
    """
    for name, value in checkpoint.read_args(state).items():
        fits = (
            type(value) is int and value > 0
            if name in SIZES
            else name != "arch" or isinstance(value, str)
        )
        if value is not None and not fits:
            kind = "a number of 1 or more" if name in SIZES else "a name"
            raise CheckpointError(
                f"{origin}: {name} in its args is a {type(value).__name__}, wants {kind}"
            )
    if state.get("normalisation") is not None:
        _check_normalization(state["normalisation"], origin)
    return {
        name: _admit_tensors(value, origin) for name, value in _admit_tensors(state, origin).items()
    }


def check_network(tensors: Mapping[str, Any], origin: Path | str) -> Mapping[str, Tensor]:
    """A network's tensors as they are.

    Raises:
        WeightsError: There is something else among them.
    """
    other = next((name for name, value in tensors.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise WeightsError(
            f"{origin}: {other} is a {type(tensors[other]).__name__}, wants a tensor"
        )
    return tensors


def list_tensors(state: Mapping[str, Any], origin: Path | str) -> dict[str, Tensor]:
    """Tensors of a file at its top or, where it has one, in its `state_dict`, without `module.` and `backbone.`.

    Raises:
        CheckpointError: `state_dict` is no dictionary, or two names are the same without what is in front.
    """
    held = read_part(state, "state_dict", origin) if "state_dict" in state else state
    return checkpoint.strip_prefixes(
        {name: value for name, value in held.items() if isinstance(value, Tensor)}
    )


def read_center(state: Mapping[str, Any], prototypes: int, origin: Path | str) -> Tensor | None:
    """The center (1, K) of K `prototypes` that a file's `dino_loss` holds, or None where it holds none.

    Raises:
        CheckpointError: It holds something else.
    """
    center = read_part(state, "dino_loss", origin).get("center")
    if center is not None and (not isinstance(center, Tensor) or center.shape != (1, prototypes)):
        kind = tuple(center.shape) if isinstance(center, Tensor) else f"a {type(center).__name__}"
        raise CheckpointError(
            f"{origin}: the center of its dino_loss is {kind}, wants (1, {prototypes})",
            remedy="name another file",
        )
    return center


def read_part(state: Mapping[str, Any], name: str, origin: Path | str) -> Mapping[str, Any]:
    """The dictionary that a file holds under `name`, empty where it holds nothing there.

    Raises:
        CheckpointError: It holds something else.
    """
    part = {} if state.get(name) is None else state[name]
    if not isinstance(part, Mapping):
        raise CheckpointError(
            f"{origin}: its {name} is a {type(part).__name__}, wants a dictionary",
            remedy="save it as one, or name another file",
        )
    return part


@dataclass(frozen=True)
class Matched:
    """What a file's tensors are to a network."""

    tensors: dict[str, Tensor]  # one for each of the network's
    left: dict[str, Tensor]  # the others

    def describe_left(self) -> str:
        """The names that were not used, counted by their first word, as the end of a line."""
        counts = Counter(name.split(".")[0] for name in self.left)
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
        tensors: The file's, under our names.
        origin: The file, for the error.
        beside: Which tensors the file may have besides.

    Raises:
        WeightsError: Some are missing or have another shape, or there are others; the text lists them.
    """
    wanted = module.state_dict()
    if not wanted.keys() <= tensors.keys() and any("cls_attn_blocks" in name for name in wanted):
        xcit = open_library("timm", purpose="XCiT").models.xcit
        tensors = xcit.checkpoint_filter_fn(dict(tensors), module)
    wrong = [
        f"{name} ({'missing' if name not in tensors else f'{tuple(tensors[name].shape)}, wants {tuple(own.shape)}'})"
        for name, own in wanted.items()
        if name not in tensors or tensors[name].shape != own.shape
    ]
    if wrong:
        raise WeightsError(
            f"{origin}: {len(wrong)} of {len(wanted)} backbone tensors do not fit, nothing was "
            f"loaded: {_shorten(wrong)}",
            remedy="check `arch`, `patch_size` and `checkpoint_key`",
        )
    left = {name: tensor for name, tensor in tensors.items() if name not in wanted}
    foreign = [name for name in left if not beside.match(name)]
    if foreign:
        raise WeightsError(
            f"{origin}: it is another network, with {len(foreign)} tensors that this one has not, "
            f"nothing was loaded: {_shorten(foreign)}",
            remedy="check `arch`",
        )
    return Matched({name: tensors[name] for name in wanted}, left)


def list_beside_vit() -> re.Pattern[str]:
    """What may lie beside a vision transformer: heads, and what formats say only training needs.

    A file with anything else is another network, which would compute other features.
    """
    return re.compile(
        "|".join([HEADS, *(each.beside for each in list_formats().values() if each.beside)])
    )


def _admit_tensors(values: Any, origin: Path | str) -> Any:
    """A dictionary of tensors, detached; anything else as it is."""
    if not isinstance(values, Mapping) or not any(
        isinstance(part, Tensor) for part in values.values()
    ):
        return values
    odd = next((type(name).__name__ for name in values if not isinstance(name, str)), None)
    if odd:
        raise CheckpointError(f"{origin} has a {odd} where the name of a tensor belongs")
    return {
        name: _admit(name, value, origin) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def _admit(name: str, tensor: Tensor, origin: Path | str) -> Tensor:
    """Detached, as parameters that were saved themselves are not."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        kind = (
            "meta"
            if tensor.is_meta
            else str(tensor.dtype if tensor.is_quantized else tensor.layout)
        )
        raise CheckpointError(
            f"{origin}: {name} is a tensor of another kind ({kind})",
            remedy="save it dense, with its numbers",
        )
    return tensor.detach()


def _check_normalization(found: Any, origin: Path | str) -> None:
    parts: list[Any] = (
        [found.get(name) for name in ("mean", "std")] if isinstance(found, Mapping) else [None]
    )
    good = all(
        isinstance(part, list | tuple) and part and all(map(_is_number, part)) for part in parts
    )
    if not good or len(parts[0]) != len(parts[1]) or min(parts[1]) <= 0:
        raise CheckpointError(
            f"{origin}: its normalization must hold a mean and a std, one number a channel each"
        )


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and math.isfinite(value)


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
