"""From a weights file to a backbone: ours, the original's, plain state dictionaries, the published ones, others'.

Never silently random: every tensor of the backbone is found, with its shape, or the load is an error that names what
is missing; and every tensor of the file that is left over is named too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino import checkpoint
from dino.errors import OptionError, WeightsError
from dino.models.config import HUB_PREFIX, BackboneConfig, ChannelConfig, WeightsConfig
from dino.models.multicrop import MultiCrop
from dino.models.registry import build_backbone
from dino.models.vit import VisionTransformer
from dino.weights.formats.mae import DECODER, is_autoencoder, name_encoder
from dino.weights.hub import PUBLISHED, Published, find_published, read_published
from dino.weights.network import count_blocks, guess_backbone, is_vision_transformer
from dino.weights.read import read_weights, rename_to_ours, select_network
from dino.weights.resample import adapt_input
from dino.weights.validate import (
    ANYTHING,
    NOTHING,
    Matched,
    check_network,
    list_beside_vit,
    match,
    read_center,
)

logger = logging.getLogger(__name__)

HIDDEN = "blocks.0.mlp.fc1.weight"  # (hidden, D)
DEFAULT_SIZE = 224  # pixels; what weights without options were trained at


@dataclass(frozen=True, kw_only=True)
class TrainedBackbone:
    """A backbone and what its file says about how to feed it.

    Attributes:
        module: (B, C, S, S) float32, normalized -> (B, D); in eval mode, on the host.
        arch: Architecture.
        patch_size: In pixels; of no meaning but for a ViT.
        image_size: S, side in pixels of the global crops it was trained on.
        in_chans: C.
        normalization: {"mean": ..., "std": ...}, C numbers each, or None where the file does not say.
    """

    module: nn.Module
    arch: str
    patch_size: int
    image_size: int
    in_chans: int
    normalization: Mapping[str, list[float]] | None


@dataclass(frozen=True, kw_only=True)
class FoundNetwork:
    """A backbone in a file, before a network is filled with it.

    Attributes:
        origin: The file, or what else named it.
        state: All that the file holds.
        trained: The network, not filled yet; `arch` is empty where no architecture of ours has its width and depth.
        matched: The file's tensors.
    """

    origin: str
    state: Mapping[str, Any]
    trained: TrainedBackbone
    matched: Matched


def load_backbone(
    backbone: BackboneConfig, weights: WeightsConfig, *, published: Published = PUBLISHED
) -> TrainedBackbone:
    """Load the backbone that the settings mean.

    Architecture, patch size, channels and image size come from the settings where given, else from the file's options,
    else from its tensors.

    Args:
        backbone: Architecture and patch size; None where the file tells them.
        weights: Which file and network, or that the network is untrained.
        published: What is taken without a file.

    Raises:
        WeightsError: No such file, a tensor of the backbone is not in it with its shape, or it has one too many.
        CheckpointError: The file is damaged.
    """
    return fill_network(find_network(backbone, weights, published=published))


def fill_network(found: FoundNetwork) -> TrainedBackbone:
    """Fill a network with what was found for it, and say so.

    Raises:
        WeightsError: The tensors do not tell how many heads it has.
    """
    if not found.trained.arch:
        raise WeightsError(
            f"{found.origin}: no architecture of this project has its width and depth",
            remedy="see `arch`",
        )
    found.trained.module.load_state_dict(found.matched.tensors)
    count = len(found.matched.tensors)
    if found.state:  # an untrained network was announced already
        logger.info(
            "%s: %d of %d backbone tensors loaded into %s%s",
            *(found.origin, count, count, found.trained.arch, found.matched.describe_left()),
        )
    return found.trained


def find_network(
    backbone: BackboneConfig,
    weights: WeightsConfig,
    *,
    published: Published = PUBLISHED,
    channels: ChannelConfig | None = None,
) -> FoundNetwork:
    """Find the backbone that the settings mean, tensor by tensor, as `load_backbone` does, without filling a network.

    Args:
        backbone: Architecture and patch size; None where the file tells them.
        weights: Which file and network, or that the network is untrained.
        published: What is taken without a file.
        channels: Where it is given, the first layer is fitted to its channels and to the patch size of `backbone`,
            those of the two that are not None.

    Raises:
        WeightsError: As `load_backbone`.
        CheckpointError: As `load_backbone`.
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
    _refuse_oblong(state, word)
    if (
        channels
        and backbone.patch_size is not None
        and not isinstance(trained.module, VisionTransformer)
    ):
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
            new_patches=backbone.patch_size is not None,
        )
    exact = not weights.pretrained_weights or word.startswith(
        HUB_PREFIX
    )  # published files hold a backbone alone
    beside = NOTHING if exact else _find_beside(trained, is_autoencoder(backbone.chosen_arch))
    named = f"{trained.arch}, " if trained.arch else ""
    matched = match(
        trained.module, tensors, f"{word} ({named}patch size {trained.patch_size})", beside
    )
    return FoundNetwork(origin=word, state=state, trained=trained, matched=matched)


def _refuse_oblong(state: Mapping[str, Any], word: str) -> None:
    """Refuse weights that are said to be stored for images of unequal sides: their grid would be taken for another."""
    sides = checkpoint.read_args(state).get("image_size")
    if isinstance(sides, list) and len(set(sides)) > 1:
        named = " x ".join(map(str, sides))
        raise WeightsError(
            f"{word} is stored for images of {named} pixels", remedy="only squares are read"
        )


def _draw_network(
    backbone: BackboneConfig, weights: WeightsConfig, in_chans: int | None
) -> FoundNetwork:
    if weights.pretrained_weights:
        raise OptionError(
            "`random_weights` and `pretrained_weights` contradict each other",
            remedy="give one of them",
        )
    given = BackboneConfig(arch=backbone.chosen_arch, patch_size=backbone.chosen_patch_size)
    logger.warning("`random_weights`: an untrained %s", given.arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # by itself each process would draw another network
        trained = _describe({}, {}, given, in_chans)
    matched = Matched(trained.module.state_dict(), {})
    return FoundNetwork(origin="`random_weights`", state={}, trained=trained, matched=matched)


def _find_beside(trained: TrainedBackbone, autoencoder: bool) -> re.Pattern[str]:
    """What may lie beside a backbone: a vision transformer without a part of its own computes something else."""
    if autoencoder:
        return re.compile(DECODER)
    return list_beside_vit() if isinstance(trained.module, VisionTransformer) else ANYTHING


def load_initial_weights(
    student: MultiCrop, path: str, *, in_chans: int | None = None, patch_size: int | None = None
) -> Tensor | None:
    """Start a network from a file's teacher: the backbone always, the head where it is there and fits.

    Args:
        student: Filled in place; position embeddings of another size are resampled.
        path: What `read_weights` takes.
        in_chans: C, where somebody asked for it: only then is a first layer fitted to other channels.
        patch_size: P in pixels, the same.

    Returns:
        The file's center (1, K) where the head was loaded, else None.

    Raises:
        WeightsError: A tensor of the backbone is not in the file with its shape.
        CheckpointError: The file is missing or damaged.
    """
    state = read_weights(path)
    network = check_network(select_network(state, "teacher", path), path)
    backbone = adapt_input(
        rename_to_ours(network),
        student.backbone.state_dict(),
        path,
        new_channels=in_chans is not None,
        new_patches=patch_size is not None,
    )
    beside = list_beside_vit() if is_vision_transformer(backbone) else ANYTHING
    _refuse_oblong(state, path)
    matched = match(student.backbone, backbone, path, beside)
    student.backbone.load_state_dict(matched.tensors)
    tensors = {name.removeprefix("module."): value for name, value in network.items()}
    head = {
        name.removeprefix("head."): value
        for name, value in tensors.items()
        if name.startswith("head.")
    }
    fits = {name: value.shape for name, value in head.items()} == {
        n: v.shape for n, v in student.head.state_dict().items()
    }
    count, rest = len(matched.tensors), " and the head" if fits else "; the head starts anew"
    logger.info("`init_from` %s: %d of %d backbone tensors%s", path, count, count, rest)
    if not fits:
        return None
    student.head.load_state_dict(head)
    return read_center(state, len(student.head.last_layer.weight_v), path)


def _describe(
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    backbone: BackboneConfig,
    in_chans: int | None = None,
) -> TrainedBackbone:
    """Build the empty backbone that the file and the settings describe; what is given wins."""
    args = {name: value for name, value in checkpoint.read_args(state).items() if value is not None}
    guessed = guess_backbone(tensors)
    unnamed = (
        {"arch": ""} if guessed and HIDDEN in tensors else {}
    )  # a width and depth that none of ours has
    usual = {"arch": backbone.chosen_arch, "patch_size": backbone.chosen_patch_size}
    known = {**usual, **unnamed, **guessed, **{name: args[name] for name in usual if name in args}}
    known |= {name: value for name, value in vars(backbone).items() if value is not None}
    if is_autoencoder(known["arch"]):
        known["arch"] = name_encoder(known["arch"], guessed)
    in_chans = in_chans or int(args.get("in_chans", guessed.get("in_chans", 3)))
    image_size = int(args.get("global_crops_size", guessed.get("image_size", DEFAULT_SIZE)))
    stored = state.get("normalisation")
    settings = {"patch_size": known["patch_size"], "in_chans": in_chans}
    settings["img_size"] = guessed.get("image_size", image_size)
    module = (
        build_backbone(known["arch"], **settings)
        if known["arch"]
        else _build_unnamed(tensors, **settings)
    )
    return TrainedBackbone(
        module=module.eval(),
        arch=known["arch"],
        patch_size=known["patch_size"],
        image_size=image_size,
        in_chans=in_chans,
        normalization=stored if stored and len(stored["mean"]) == in_chans else None,
    )


def _build_unnamed(tensors: Mapping[str, Tensor], **settings: int) -> VisionTransformer:
    """A vision transformer by the shapes of a file's tensors; they do not tell the number of heads, which is 1 here."""
    hidden, dim = tensors[HIDDEN].shape
    return VisionTransformer(
        embed_dim=dim,
        depth=count_blocks(tensors),
        heads=1,
        mlp_ratio=hidden / dim,
        conv_stem=False,
        **settings,
    )
