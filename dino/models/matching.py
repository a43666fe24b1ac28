"""A network's tensors in a file: each is found, with its shape, and what else the file holds is named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from dino.errors import WeightsError

# What may lie beside a backbone. A vision transformer's are heads of all projects and an autoencoder's decoder: a file
# with anything else is another network, which would compute other features.
NOTHING = re.compile("(?!)")
ANYTHING = re.compile("")
AUTOENCODER = re.compile(r"mask_token$|decoder_")
HEADS = r"(head|linear|fc|classifier|pooler|projector|projection_head|predictor|prototypes)\."
VIT = re.compile(f"{HEADS}|{AUTOENCODER.pattern}")


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


def match(module: nn.Module, tensors: Mapping[str, Tensor], origin: str, beside: re.Pattern[str] = ANYTHING) -> Matched:
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
        from timm.models import xcit  # the network is timm's, so timm is there

        rename: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] = xcit.checkpoint_filter_fn
        tensors = rename(dict(tensors), module)
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


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
