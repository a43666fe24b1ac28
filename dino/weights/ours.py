"""This project's own files of weights: a checkpoint, or safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino import checkpoint, stored
from dino.errors import OptionError
from dino.weights.network import Network
from dino.weights.safetensors_file import ABOUT, save_safetensors

BACKBONE = "backbone."


def describe_ours(network: Network, target: Path) -> dict[str, Any]:
    """Describe a network as a checkpoint does: its settings under `args`, and its normalization.

    Raises:
        OptionError: The images are not square.
    """
    height, width = network.image_size
    if height != width:
        raise OptionError(
            f"`input_size` must be square for {target.suffix} files (got {height} {width})",
            value=height,
            remedy="give one number",
        )
    args: dict[str, Any] = {
        "patch_size": network.patch_size,
        "in_chans": network.in_chans,
        "global_crops_size": height,
    }
    args |= {"arch": network.arch} if network.arch else {}
    args |= {"pixel_range": network.pixel_range} if network.pixel_range else {}
    return {"args": args, "normalisation": network.normalization}


def write_checkpoint(network: Network, target: Path) -> None:
    """Write a checkpoint of ours. The linear layer is named as in the original's evaluation.

    Raises:
        OptionError: The images are not square.
        CheckpointError: The file cannot be written.
    """
    about = describe_ours(network, target)
    state = {"teacher": stored.add_prefix(BACKBONE, network.tensors)}
    if network.linear:
        state["state_dict"] = stored.add_prefix("module.linear.", network.linear)
    checkpoint.save_file(target, state | about)


def write_safetensors(network: Network, target: Path) -> None:
    """Write the backbone as safetensors, with plain names.

    Raises:
        OptionError: As `write_checkpoint`.
        CheckpointError: As `write_checkpoint`.
    """
    save_safetensors(target, network.tensors, describe_ours(network, target))


def save_published(path: Path, published: Mapping[str, Any]) -> None:
    """Write the content of a run's `teacher_backbone.pth` as safetensors.

    Args:
        path: The file.
        published: `teacher`, in host memory, `epoch`, `args` and `normalisation`.

    Raises:
        CheckpointError: The file cannot be written; an older file is untouched.
    """
    tensors = stored.strip_prefixes(published["teacher"])
    save_safetensors(path, tensors, {name: published[name] for name in ABOUT})
