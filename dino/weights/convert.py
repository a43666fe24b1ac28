"""Convert weights: read any format, write one, read the file back and compare every tensor.

Letters: C classes, D width of the features.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino.checkpoint import read_args
from dino.data.photometric import build_normalization
from dino.errors import OptionError, WeightsError
from dino.files import atomic_draft
from dino.models.config import LayerConfig
from dino.models.position import scale_position
from dino.models.registry import width_of
from dino.runtime.metrics import write_result
from dino.weights.config import ConversionConfig
from dino.weights.formats import Format
from dino.weights.load import FoundNetwork, find_network
from dino.weights.network import Network, is_vision_transformer
from dino.weights.ours import write_checkpoint
from dino.weights.read import read_weights, rename_to_ours, select_network
from dino.weights.resample import POSITION
from dino.weights.targets import OURS, check_output, read_size
from dino.weights.validate import Matched, check_finite, list_tensors

logger = logging.getLogger(__name__)

LINEAR = ("linear.linear.", "linear.")  # prefixes of a linear classifier: PASSL's, the original's


def convert(config: ConversionConfig, form: Format, layer: LayerConfig | None = None) -> None:
    """Read the weights, write them to `file_out`, read that file back and compare.

    Args:
        config: Settings of the command.
        form: The other project's format, one that can write. `OUT.pth` is this project's.
        layer: If given, convert a linear layer too: from this file, or from the backbone's file.

    Raises:
        OptionError: `file_out` is not named or cannot be written.
        WeightsError: The format cannot hold the network, or a tensor differs when it is read back.
            An existing file is left untouched.
        CheckpointError: A file is missing or damaged.
    """
    target = check_output(config, form.ending)
    network = read_network(config, layer)
    ours = target.suffix == OURS
    write = write_checkpoint if ours else form.write
    assert write is not None
    if not (ours or form.tells_images):
        check_grid(network, target)
    with atomic_draft(target, "`file_out`") as draft:
        write(network, draft)
        count = check_written(network, draft)
    if form.tell and not ours:
        logger.info("%s", form.tell(network, target))
    actual = build_normalization(network.in_chans, network.normalization)
    default = build_normalization(network.in_chans, None)
    if actual != default and not (ours or form.tells_images):
        logger.warning(
            "%s does not say how images are normalized: mean %s, std %s",
            *(target, actual.mean, actual.std),
        )
    report_written(config, network, target, count)


def report_written(config: ConversionConfig, network: Network, target: Path, count: int) -> None:
    """Log that `count` tensors were written and read back, and write it to `json`."""
    logger.info(
        "%s -> %s: %d of %d tensors matched%s", network.origin, target, count, count, network.left
    )
    about = {
        "arch": network.arch,
        "patch_size": network.patch_size,
        "image_size": list(network.image_size),
    }
    write_result(config.report.json, {"output": str(target), "matched": count, **about})


def read_network(config: ConversionConfig, layer: LayerConfig | None = None) -> Network:
    """Read the network of the settings and fit it to the requested input.

    Raises:
        WeightsError: The network is missing, or does not fit.
        CheckpointError: A file is missing or damaged.
    """
    found = find_network(config.backbone, config.weights, channels=config.channels)
    return describe_found(found, config, find_layer(layer, found) if layer else None)


def describe_found(
    found: FoundNetwork, config: ConversionConfig, linear: Mapping[str, Tensor] | None = None
) -> Network:
    """Describe a network that was found, fitted to the requested input.

    Raises:
        WeightsError: It does not fit.
    """
    trained, tensors, linear = found.trained, found.matched.tensors, linear or {}
    used = {id(tensor) for tensor in linear.values()}
    left = {
        name: tensor for name, tensor in found.matched.unexpected.items() if id(tensor) not in used
    }
    network = Network(
        origin=found.origin,
        tensors=tensors,
        linear=linear,
        arch=trained.arch,
        patch_size=trained.patch_size,
        in_chans=trained.in_chans,
        image_size=(trained.image_size, trained.image_size),
        normalization=trained.normalization,
        pixel_range=trained.pixel_range,
        left=Matched(tensors, left).describe_unexpected(),
    )
    size = read_size(config.conversion)
    return fix_size(network, size) if size else network


def check_grid(network: Network, target: Path) -> None:
    """Refuse an oblong grid whose patch count is a square: the file stores the count only.

    Raises:
        OptionError: A reader of the file would take the grid for a square.
    """
    if not is_vision_transformer(network.tensors):
        return
    rows, columns = (side // network.patch_size for side in network.image_size)
    side = math.isqrt(rows * columns)
    if rows != columns and side * side == rows * columns:
        raise OptionError(
            f"{target} does not store sizes, and its {rows} x {columns} patches would be read as "
            f"{side} x {side}: give another `input_size`"
        )


def fix_size(network: Network, size: tuple[int, int]) -> Network:
    """Fix the image height and width. A ViT's position embedding is resampled as in its forward.

    Raises:
        WeightsError: An image would be smaller than a patch.
    """
    if POSITION not in network.tensors:
        return replace(network, image_size=size)
    if min(size) < network.patch_size:
        raise WeightsError(
            f"`input_size` must be at least one patch, {network.patch_size} pixels "
            f"(got {size[0]} {size[1]})",
            value=size[0],
        )
    stored = network.tensors[POSITION]
    scaled = scale_position(stored.float(), *size, network.patch_size).to(stored.dtype)
    if scaled.shape != stored.shape or not torch.equal(scaled, stored):
        logger.info("position embedding resampled to %d x %d pixels, bicubic", *size)
    return replace(network, image_size=size, tensors={**network.tensors, POSITION: scaled})


def find_layer(layer_file: LayerConfig, found: FoundNetwork) -> dict[str, Tensor]:
    """Find a linear classifier in the named file, or else in the backbone's file.

    Returns:
        `weight` (C, n x D) and `bias` (C,), or nothing if the backbone's file has no classifier.

    Raises:
        WeightsError: The named file has no classifier, or its shape does not fit the backbone.
        CheckpointError: The file is missing or damaged.
    """
    if layer_file.pretrained_linear:
        origin = f"`pretrained_linear` {layer_file.pretrained_linear}"
        layer = select_layer(read_weights(layer_file.pretrained_linear), origin)
        if not layer:
            raise WeightsError(f"{origin} holds no linear layer")
    else:
        origin = found.origin
        layer = select_layer(found.matched.unexpected, origin) or select_layer(found.state, origin)
    weight, bias = (tuple(layer[name].shape) if layer else () for name in ("weight", "bias"))
    width = width_of(found.trained.module)
    if layer and (len(weight) != 2 or bias != weight[:1] or not weight[1] or weight[1] % width):
        raise WeightsError(
            f"{origin}: a linear layer must have shapes (C, n x {width}) and (C,) "
            f"(got {weight} and {bias})"
        )
    check_finite(layer, origin)
    return layer


def select_layer(state: Mapping[str, Any], origin: Path | str) -> dict[str, Tensor]:
    """Select the linear classifier of a file by PASSL's or the original's names.

    Returns:
        `weight` (C, D) and `bias` (C,), or nothing.

    Raises:
        CheckpointError: As in `list_tensors`.
    """
    tensors = list_tensors(state, origin)
    for prefix in LINEAR:
        if {f"{prefix}weight", f"{prefix}bias"} <= tensors.keys():
            return {name: tensors[f"{prefix}{name}"] for name in ("weight", "bias")}
    return {}


def check_written(network: Network, draft: Path) -> int:
    """Read the written file back and compare. Returns the number of its tensors.

    A pixel range that it does not store is logged.

    Raises:
        WeightsError: A tensor differs.
    """
    state = read_weights(str(draft))
    tensors = rename_to_ours(select_network(state, "teacher", draft))
    linear = select_layer(tensors, draft) or select_layer(state, draft) if network.linear else {}
    pairs = [
        (network.tensors, {n: t for n, t in tensors.items() if n in network.tensors}),
        (network.linear, linear),
    ]
    different = [
        name
        for written, stored in pairs
        for name, tensor in written.items()
        if name not in stored or not _same_bits(stored[name], tensor)
    ]
    if different:
        raise WeightsError(
            f"{draft.name} would differ from {network.origin} when it is read back, "
            f"and was not written: {', '.join(different)}"
        )
    if network.pixel_range and not read_args(state).get("pixel_range"):
        lost = "%s does not say that the levels from %g to %g of deep images become 0 to 255"
        logger.warning(lost, draft.name, *network.pixel_range)
    return len(network.tensors) + len(network.linear)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits. Unlike ==, this holds for NaN too."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(
        *(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    )
