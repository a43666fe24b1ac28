"""A backbone as a program that runs without this package: images of one size to features.

Letters: B images, C channels, H W pixels, D width of the features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dino.data.photometric import build_normalization
from dino.errors import OptionError, WeightsError
from dino.files import atomic_draft
from dino.models.vit import VisionTransformer
from dino.runtime.metrics import write_result
from dino.weights.config import ConversionConfig
from dino.weights.load import TrainedBackbone, fill_network, find_network
from dino.weights.targets import check_output, read_size

if TYPE_CHECKING:
    from torch.export import ExportedProgram

logger = logging.getLogger(__name__)

# Largest batch size. torch 2.5 rejects an unbounded one: it could be the number that ends a slice.
MOST_IMAGES = 2**31 - 1
BATCHES = (1, 3)  # batch sizes at which a program is compared with the network
CLOSE = 1e-4  # largest difference between the two, relative to the largest feature


def convert_program(
    config: ConversionConfig,
    ending: str,
    *,
    check: Callable[[], None],
    write: Callable[[nn.Module, Tensor, Path], None],
    compare: Callable[[nn.Module, Tensor, Path], float | None],
) -> None:
    """Write a backbone as a program, and compare its features with the network's.

    Args:
        config: Settings of the command.
        ending: Ending of the file.
        check: Checks that the program can be written, before the weights are read.
        write: Writes the program of a network for images like an example (B, C, H, W).
        compare: Returns the difference between a file and the network on such images.

    Raises:
        DinoError: The weights do not fit, or the program cannot be written or differs.
    """
    target = check_output(config, ending, both_ways=False)
    size = read_size(config.conversion)
    check()
    found = find_network(config.backbone, config.weights, channels=config.channels)
    backbone = fill_network(found)
    images = fix_input(backbone, *(size or (backbone.image_size, backbone.image_size)))
    with atomic_draft(target, "`file_out`") as draft:
        write(backbone.module, images, draft)
        difference = compare(backbone.module, images, draft)
    expected = build_normalization(backbone.in_chans, backbone.normalization)
    logger.info(
        "images must be normalized: levels from 0 to 1, mean %s, std %s",
        *(expected.mean, expected.std),
    )
    count = len(found.matched.tensors)
    logger.info(
        "%s: %d of %d tensors matched, for images %s", target, count, count, list(images.shape[1:])
    )
    result = {
        "output": str(target),
        "matched": count,
        "images": list(images.shape[1:]),
        "difference": difference,
    }
    write_result(config.report.json, result)


def fix_input(backbone: TrainedBackbone, height: int, width: int) -> Tensor:
    """Fix the image size of the network's position embedding.

    Returns:
        Example images (B, C, H, W), float32, from a standard normal distribution.

    Raises:
        OptionError: The images are smaller than a patch.
    """
    if isinstance(backbone.module, VisionTransformer):
        if min(height, width) < backbone.patch_size:
            raise OptionError(
                f"`input_size` must be at least one patch, {backbone.patch_size} pixels "
                f"(got {height} {width})",
                value=height,
            )
        backbone.module.fix_size(height, width)
    generator = torch.Generator().manual_seed(0)
    return torch.randn((max(BATCHES), backbone.in_chans, height, width), generator=generator)


def export_program(module: nn.Module, images: Tensor) -> ExportedProgram:
    """Export images (B, C, H, W) -> features (B, D), for any B.

    Args:
        module: The network, in eval mode.
        images: An example batch of more than one image. A batch of one would become a constant.

    Raises:
        RuntimeError: This torch cannot export the network.
    """
    shapes = ({0: torch.export.Dim("batch", max=MOST_IMAGES)},)
    return torch.export.export(module, (images,), dynamic_shapes=shapes)


def compare_features(
    infer: Callable[[Tensor], Tensor], module: nn.Module, images: Tensor, name: str
) -> float:
    """Run a program and the network on the same images, at two batch sizes.

    Args:
        infer: The program.
        module: The network.
        images: (B, C, H, W) float32.
        name: The program's name in messages.

    Returns:
        The largest difference relative to the largest feature.

    Raises:
        WeightsError: The features differ by more than `CLOSE`.
    """
    worst = 0.0
    for batch in BATCHES:
        with torch.inference_mode():
            expected, features = module(images[:batch]), infer(images[:batch])
        worst = max(worst, float((features - expected).abs().max() / expected.abs().max()))
    if not worst <= CLOSE:
        raise WeightsError(
            f"the features of {name} must equal the network's within {CLOSE:.0e} "
            f"(they differ by {worst:.1e})"
        )
    logger.info(
        "%s: features of %s images equal the network's within %.1e",
        *(name, " and ".join(map(str, BATCHES)), worst),
    )
    return worst
