"""Load a backbone from a file of any format: ours, the original's, published or of other projects.

Weights are never silently random. If a tensor of the backbone is missing or has another shape, the
load is an error that names it. Every unused tensor of the file is reported too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino import checkpoint
from dino.data.levels import PixelRange, check_range
from dino.errors import CheckpointError, OptionError, WeightsError
from dino.models.config import HUB_PREFIX, BackboneConfig, ChannelConfig, WeightsConfig
from dino.models.registry import build_backbone
from dino.models.vit import VisionTransformer
from dino.weights.formats.mae import DECODER, is_autoencoder, name_encoder
from dino.weights.hub import PUBLISHED, Published, find_published, read_published
from dino.weights.network import count_blocks, guess_backbone
from dino.weights.read import read_weights, rename_to_ours, select_network
from dino.weights.resample import adapt_input
from dino.weights.validate import (
    ANYTHING,
    NOTHING,
    Matched,
    check_network,
    check_square,
    list_beside_vit,
    match,
)

logger = logging.getLogger(__name__)

HIDDEN = "blocks.0.mlp.fc1.weight"  # (hidden, D)
DEFAULT_SIZE = 224  # side in pixels of the training views, for weights without options


@dataclass(frozen=True, kw_only=True)
class TrainedBackbone:
    """A backbone and the facts about its input from its file.

    Attributes:
        module: (B, C, S, S) float32, normalized -> (B, D); in eval mode, on the host.
        arch: Architecture.
        patch_size: Patch size in pixels; meaningful for a ViT only.
        image_size: S, side in pixels of the global crops it was trained on.
        in_chans: C.
        normalization: {"mean": ..., "std": ...} with C numbers each, or None if unknown.
        pixel_range: Levels that become black and white where they have more than 8 bits, or None.
    """

    module: nn.Module
    arch: str
    patch_size: int
    image_size: int
    in_chans: int
    normalization: Mapping[str, list[float]] | None
    pixel_range: PixelRange | None = None


@dataclass(frozen=True, kw_only=True)
class FoundNetwork:
    """A backbone in a file, before its tensors are loaded into a network.

    Attributes:
        origin: The file, or another name of the weights.
        state: The contents of the file.
        trained: The network, not loaded yet. `arch` is empty if no `arch` has its width and depth.
        matched: The file's tensors.
    """

    origin: str
    state: Mapping[str, Any]
    trained: TrainedBackbone
    matched: Matched


def load_backbone(
    backbone: BackboneConfig,
    weights: WeightsConfig,
    *,
    published: Published = PUBLISHED,
    pixel_range: PixelRange | None = None,
) -> TrainedBackbone:
    """Load the backbone of the settings.

    Architecture, patch size, channels and image size come from the settings, then from the file's
    options, then from its tensors.

    Args:
        backbone: Architecture and patch size. None means: from the file.
        weights: The file and network, or an untrained network.
        published: The published files, used if no file is named.
        pixel_range: The range of pixels, if the file has none.

    Raises:
        OptionError: The file has another range of pixels.
        WeightsError: The file does not exist, or the tensors do not match the backbone.
        CheckpointError: The file is damaged.
    """
    trained = fill_network(find_network(backbone, weights, published=published))
    return replace(trained, pixel_range=choose_range(pixel_range, trained.pixel_range))


def choose_range(asked: PixelRange | None, stored: PixelRange | None) -> PixelRange | None:
    """Return the range of pixels of the settings or of the file.

    Raises:
        OptionError: They differ, or the range does not go up.
    """
    if asked is not None and stored is not None and asked != stored:
        raise OptionError(
            f"`pixel_range` must be {stored[0]:g},{stored[1]:g}, with which the network was trained"
            f" (got {asked[0]:g},{asked[1]:g})",
            value=asked,
            remedy="leave it out",
        )
    check_range(asked or stored)
    return asked or stored


def _read_range(args: Mapping[str, Any]) -> PixelRange | None:
    ends = args.get("pixel_range")
    if ends is None:
        return None
    numbers = isinstance(ends, list | tuple) and all(isinstance(end, int | float) for end in ends)
    if not numbers or len(ends) != 2:
        raise CheckpointError(f"the file's `pixel_range` must be two numbers (got {ends!r:.80})")
    return float(ends[0]), float(ends[1])


def fill_network(found: FoundNetwork) -> TrainedBackbone:
    """Load the matched tensors into the network, and log their number.

    Raises:
        WeightsError: The number of heads is unknown: the tensors do not contain it.
    """
    if not found.trained.arch:
        raise WeightsError(
            f"{found.origin}: no architecture of this project has its width and depth",
            remedy="see `arch`",
        )
    found.trained.module.load_state_dict(found.matched.tensors)
    count = len(found.matched.tensors)
    if found.state:  # an untrained network is already logged
        logger.info(
            "%s: %d of %d backbone tensors loaded into %s%s",
            *(found.origin, count, count, found.trained.arch, found.matched.describe_unexpected()),
        )
    return found.trained


def find_network(
    backbone: BackboneConfig,
    weights: WeightsConfig,
    *,
    published: Published = PUBLISHED,
    channels: ChannelConfig | None = None,
) -> FoundNetwork:
    """Find the backbone of the settings and match its tensors, without loading them.

    Args:
        backbone: As in `load_backbone`.
        weights: As in `load_backbone`.
        published: As in `load_backbone`.
        channels: If given, the first layer is adapted to its channels and to the patch size of
            `backbone`, to each that is not None.

    Raises:
        WeightsError: As in `load_backbone`.
        CheckpointError: As in `load_backbone`.
    """
    in_chans = channels.in_chans if channels else None
    if weights.random_weights:
        return _draw_network(backbone, weights, in_chans)
    word = weights.pretrained_weights or str(find_published(backbone, published))
    state = read_weights(word) if weights.pretrained_weights else read_published(Path(word))
    tensors = rename_to_ours(
        check_network(select_network(state, weights.checkpoint_key, word), word)
    )
    trained = _describe(state, tensors, backbone, in_chans)
    check_square(state, word)
    new_patches = backbone.patch_size is not None
    if channels and new_patches and not isinstance(trained.module, VisionTransformer):
        raise OptionError(
            f"`patch_size` {backbone.patch_size} means nothing to {trained.arch}",
            value=backbone.patch_size,
            remedy="leave it out",
        )
    if channels:
        tensors = adapt_input(
            tensors,
            trained.module.state_dict(),
            word,
            new_channels=in_chans is not None,
            new_patches=new_patches,
        )
    # Published files hold only a backbone.
    exact = not weights.pretrained_weights or word.startswith(HUB_PREFIX)
    beside = NOTHING if exact else _find_beside(trained, is_autoencoder(backbone.chosen_arch))
    named = f"{trained.arch}, " if trained.arch else ""
    matched = match(
        trained.module, tensors, f"{word} ({named}patch size {trained.patch_size})", beside
    )
    return FoundNetwork(origin=word, state=state, trained=trained, matched=matched)


def _draw_network(
    backbone: BackboneConfig, weights: WeightsConfig, in_chans: int | None
) -> FoundNetwork:
    if weights.pretrained_weights:
        raise OptionError(
            "`random_weights` and `pretrained_weights` contradict each other",
            remedy="give one of them",
        )
    chosen = BackboneConfig(arch=backbone.chosen_arch, patch_size=backbone.chosen_patch_size)
    logger.warning("`random_weights`: an untrained %s", chosen.arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # otherwise each process would draw another network
        trained = _describe({}, {}, chosen, in_chans)
    matched = Matched(trained.module.state_dict(), {})
    return FoundNetwork(origin="`random_weights`", state={}, trained=trained, matched=matched)


def _find_beside(trained: TrainedBackbone, autoencoder: bool) -> re.Pattern[str]:
    """Return the pattern of allowed other tensors. A ViT with unused parts is another network."""
    if autoencoder:
        return re.compile(DECODER)
    return list_beside_vit() if isinstance(trained.module, VisionTransformer) else ANYTHING


def _describe(
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    backbone: BackboneConfig,
    in_chans: int | None = None,
) -> TrainedBackbone:
    """Build the empty backbone that the settings and the file describe; settings come first."""
    args = {name: value for name, value in checkpoint.read_args(state).items() if value is not None}
    guessed = guess_backbone(tensors)
    # A ViT whose width and depth none of ours has gets an empty name.
    unnamed = {"arch": ""} if guessed and HIDDEN in tensors else {}
    defaults = {"arch": backbone.chosen_arch, "patch_size": backbone.chosen_patch_size}
    stored_args = {name: args[name] for name in defaults if name in args}
    chosen = {name: value for name, value in vars(backbone).items() if value is not None}
    about = {**defaults, **unnamed, **guessed, **stored_args, **chosen}
    if is_autoencoder(about["arch"]):
        about["arch"] = name_encoder(about["arch"], guessed)
    in_chans = in_chans or int(args.get("in_chans", guessed.get("in_chans", 3)))
    image_size = int(args.get("global_crops_size", guessed.get("image_size", DEFAULT_SIZE)))
    stored = state.get("normalisation")
    settings = {"patch_size": about["patch_size"], "in_chans": in_chans}
    settings["img_size"] = guessed.get("image_size", image_size)
    if about["arch"]:
        module = build_backbone(about["arch"], **settings)
    else:
        module = _build_unnamed(tensors, **settings)
    return TrainedBackbone(
        module=module.eval(),
        arch=about["arch"],
        patch_size=about["patch_size"],
        image_size=image_size,
        in_chans=in_chans,
        normalization=stored if stored and len(stored["mean"]) == in_chans else None,
        pixel_range=_read_range(args),
    )


def _build_unnamed(tensors: Mapping[str, Tensor], **settings: int) -> VisionTransformer:
    """Build a ViT from a file's shapes, with 1 head: shapes do not reveal the heads."""
    hidden, dim = tensors[HIDDEN].shape
    return VisionTransformer(
        embed_dim=dim,
        depth=count_blocks(tensors),
        heads=1,
        mlp_ratio=hidden / dim,
        conv_stem=False,
        **settings,
    )
