"""Export a backbone as a program of torch: `dino convert IN OUT.pt2 --to export`."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dino.errors import OptionError
from dino.weights.config import ConversionConfig
from dino.weights.formats import Format

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

ENDING = ".pt2"


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ConversionConfig):
    """Write a backbone as a program of torch.export, which runs without this package.

    dino convert IN OUT.pt2 --to export. Images have one size; a batch has any number of them.
    """


def write_export(config: ConversionConfig) -> None:
    """Write the program of a backbone, and compare its features with the network's.

    Raises:
        DinoError: The weights do not fit, torch cannot export, or the file cannot be written.
    """
    from dino.weights.programs import convert_program

    convert_program(config, ENDING, check=check_torch, write=write_program, compare=compare)
    loading = "torch.export.load(%r).module() maps images (B, C, H, W) to features (B, D)"
    logger.info(loading, config.conversion.file_out)


def check_torch() -> None:
    """Check that this torch exports programs.

    Raises:
        OptionError: It is too old.
    """
    if importlib.util.find_spec("torch.export") is None:
        import torch

        raise OptionError(
            f"torch.export needs torch 2.5 or later (got {torch.__version__})",
            remedy="convert to onnx, which can trace a network",
        )


def write_program(module: nn.Module, images: Tensor, target: Path) -> None:
    """Write images (batch, C, H, W) -> features (batch, D), for any batch.

    Args:
        module: The network, in eval mode.
        images: An example batch of more than one image.
        target: The file.

    Raises:
        OptionError: This torch cannot export the network, or the file cannot be written.
    """
    import torch

    from dino.files import atomic_write
    from dino.weights.programs import export_program

    try:
        program = export_program(module, images)
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OptionError(
            f"torch {torch.__version__} cannot export this network: {reason}",
            remedy="try a newer torch, or another `arch`",
        ) from error
    with atomic_write(target, "`file_out`") as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


def compare(module: nn.Module, images: Tensor, target: Path) -> float:
    """Run the program and the network on the same images, as `compare_features`.

    Raises:
        WeightsError: The features differ.
    """
    import torch

    from dino.weights.programs import compare_features

    program = torch.export.load(target).module()
    return compare_features(program, module, images, target.name)


FORMAT = Format(rank=9, config=ExportConfig, ending=ENDING, run=write_export)
