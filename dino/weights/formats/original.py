"""The original's weights: the published ones by name (`hub:dino_vits16`), and its checkpoints.

Their tensor names are ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from dino.models.config import HUB_PREFIX
from dino.weights.formats import Contents, Format


def read_hub(word: str) -> dict[str, Any]:
    """Read published weights by their name in torch's hub, from the mirror folder or the network.

    Raises:
        WeightsError: The name is unknown, or the weights cannot be downloaded.
        CheckpointError: The file is damaged.
    """
    from dino.weights.hub import find_published, read_hub_name, read_published

    named = read_hub_name(word.removeprefix(HUB_PREFIX))
    return {
        "state_dict": read_published(find_published(named, remedy="or name a file instead")),
        "args": {"arch": named.chosen_arch, "patch_size": named.chosen_patch_size},
    }


def name_kind(contents: Contents) -> str:
    """Name published weights, a checkpoint of the original or this project, or a linear layer."""
    names, networks, args = contents.names, contents.networks, contents.state.get("args")
    kinds = {
        "published weights of the original": contents.word.startswith(HUB_PREFIX),
        "checkpoint of this project": isinstance(args, Mapping) and "student" in networks,
        "backbone of this project": isinstance(args, Mapping) and "teacher" in networks,
        "checkpoint of the original": isinstance(args, argparse.Namespace)
        and "student" in networks,
        "linear layer": bool(names) and all(name.startswith("linear.") for name in names),
    }
    return next((kind for kind, holds in kinds.items() if holds), "")


FORMAT = Format(rank=5, prefix=HUB_PREFIX, read=read_hub, kind=name_kind)
