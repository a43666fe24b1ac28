"""What `preset` auto chooses where images are few: a small network on small crops, or weights.

A large network on large crops makes so few updates on few images that its features become worse
than those it began with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

FEW_IMAGES = 20_000
# Below this, published weights serve better than any training from nothing that was tried.
TOO_FEW_IMAGES = 2_000
PATCHES = ((64, 4), (160, 8))  # (below this side in pixels, patch size); 16 above
CONVNET_STRIDE = 32  # pixels of the image for one of the last feature map
SMALL_SIDE = 64  # pixels of a global crop of the small network
FROZEN_SHARE = 0.1  # of the epochs, with given weights: prototypes frozen, the rate warms up


class Choice(NamedTuple):
    """A value and the reason for it."""

    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run knows of the weights that `init_from` names.

    Attributes:
        arch: Architecture.
        patch_size: Side of a patch in pixels, or None for a network without patches.
        image_size: Side in pixels of the crops on which they were trained.
        normalization: Mean and standard deviation of each channel, if they are not ImageNet's.
    """

    arch: str
    patch_size: int | None
    image_size: int
    normalization: dict[str, tuple[float, ...]] | None = None


def choose_small_network(side: int, reason: str) -> dict[str, Choice]:
    """Choose the small network, and crops of images of `side` pixels (the shorter side)."""
    patch = choose_patch(min(side, SMALL_SIDE))
    chosen = {
        "arch": Choice("vit_micro", reason),
        "patch_size": Choice(patch, reason),
        "drop_path_rate": Choice(0.0, reason),
        "local_crops_number": Choice(2, reason),
    }
    return chosen | choose_crops(SMALL_SIDE, side, patch)


def choose_crops(wanted: int, side: int, patch: int) -> dict[str, Choice]:
    """Choose crops of at most `wanted` pixels that images of `side` pixels fill, in whole patches.

    Local crops have half the side, as in the original (96 of 224).
    """
    large = max(2 * patch, _round_down(min(wanted, side), patch))
    small = max(patch, _round_down(large // 2, patch))
    reason = f"images of {side} pixels, in patches of {patch}"
    return {
        "global_crops_size": Choice(large, reason),
        "local_crops_size": Choice(small, reason),
    }


def choose_patch(side: int) -> int:
    """Choose the patches of images of `side` pixels, so that there are some dozens of them."""
    return next((patch for most, patch in PATCHES if side < most), PATCHES[-1][1] * 2)


def choose_for_weights(start: Start, side: int, epochs: int) -> dict[str, Choice]:
    """Choose what keeps given weights: their own network and sizes, and a slow beginning."""
    reason = "as in the weights of `init_from`"
    slow = f"`init_from`: the head begins at random and must not undo the weights; {epochs} epochs"
    frozen = min(max(1, round(FROZEN_SHARE * epochs)), epochs - 1)
    own = start.normalization or {}
    return {
        "arch": Choice(start.arch, reason),
        **({"patch_size": Choice(start.patch_size, reason)} if start.patch_size else {}),
        **choose_crops(start.image_size, side, start.patch_size or CONVNET_STRIDE),
        **{name: Choice(value, reason) for name, value in own.items()},
        "freeze_last_layer": Choice(frozen, slow),
        "warmup_epochs": Choice(frozen, slow),
    }


def _round_down(value: int, step: int) -> int:
    return value - value % step
