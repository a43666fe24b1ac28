"""The features of every image, with file names, in one file that other programs open.

Tokens are written to scratch files beside the output as they come, so that memory stays small whatever the number of
images; the output is made of those and takes its place when it is whole. Shapes: N images, L chosen blocks, D width,
h w patch grid.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dino.data.image_source import ImageSource
from dino.data.sources import find_stray, open_images
from dino.errors import DataError, OptionError
from dino.evaluation.config import FeatureConfig, FeatureFileConfig
from dino.evaluation.descriptors import BlockTokens
from dino.evaluation.export.formats import WRITERS, Arrays
from dino.evaluation.features import stream_features
from dino.evaluation.runner import Runner
from dino.files import atomic_draft
from dino.models.registry import width_of
from dino.models.vit import VisionTransformer
from dino.runtime.context import Run, leaving_on_sigterm
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What one image's row consists of.

    Attributes:
        layers: Numbers of blocks from 1, or None for the network's output alone.
        grid: (h, w), or None without patch tokens.
        width: D.
    """

    layers: tuple[int, ...] | None
    grid: tuple[int, int] | None
    width: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one image's part of every array, float32, by the array's name."""
        found: dict[str, tuple[int, ...]] = {}
        for ending in [""] if self.layers is None else [f"_{layer}" for layer in self.layers]:
            found[f"features{ending}"] = (self.width,)
            if self.grid is not None:
                found[f"patches{ending}"] = (*self.grid, self.width)
        return found

    def split(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Rows (B, ...) as the network gave them, by the array's name."""
        tokens = rows.reshape(len(rows), len(self.layers or (0,)), -1, self.width)
        parts = [
            part
            for layer in range(tokens.shape[1])
            for part in (tokens[:, layer, 0], tokens[:, layer, 1:])
        ]
        if self.grid is None:
            parts = parts[::2]
        return {
            name: part.reshape(len(rows), *shape)
            for (name, shape), part in zip(self.shapes().items(), parts, strict=True)
        }


def write_feature_file(config: FeatureFileConfig, run: Run) -> None:
    """Describe every image and write `output`.

    Raises:
        DinoError: A file that cannot be written, wrong weights, missing folders, unreadable images.
    """
    output = check_output(config.features)
    runner = Runner(config, run)
    with run.processes.rank_zero_first():
        source = open_images(config.data.data_path)
        check_names(source)
        stray = find_stray(source)
        if stray and run.processes.is_rank_zero:
            logger.warning("no labels are written: %s lies in no class folder", stray)
    descriptor, layout = build_descriptor(runner.load_backbone(), config.features)
    check_space(output, layout, len(source))
    batches = stream_features(descriptor, source, run, runner.reading)
    if not run.processes.is_rank_zero:
        for _ in batches:
            pass
        return
    write_arrays(output, source, layout, (layout.split(rows.numpy()) for rows in batches))
    shapes = {name: [len(source), *shape] for name, shape in layout.shapes().items()}
    logger.info(
        "%s: %s of %d images",
        output,
        ", ".join(f"{name} {shapes[name]}" for name in shapes),
        len(source),
    )
    runner.report({"output": str(output), "images": len(source), "arrays": shapes})


def check_output(config: FeatureConfig) -> Path:
    """The output's path, of a known kind and in a folder that can be written to.

    Raises:
        OptionError: It is not.
    """
    if not config.output:
        raise OptionError(f"`output` is missing: name a file that ends in {', '.join(WRITERS)}")
    path = Path(config.output)
    if path.suffix not in WRITERS:
        raise OptionError(f"`output` {path} must end in {', '.join(WRITERS)}", value=path)
    if path.suffix == ".csv" and config.patches:
        raise OptionError(
            "`patches` does not fit into a .csv", remedy="write .npz, .safetensors or .parquet"
        )
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise OptionError(
            f"`output` {path} needs pyarrow: pip install pyarrow, or write .npz", value=path
        )
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise OptionError(
            f"`output` {path} cannot be written",
            value=path,
            remedy="name a file in a folder that exists and can be",
        )
    return path


def check_names(source: ImageSource) -> None:
    """Refuse file names that are no text.

    Raises:
        DataError: The first one.
    """
    wrong = next(
        (name for name in source.names if name.encode("utf-8", "replace").decode() != name), None
    )
    if wrong is not None:
        raise DataError(f"{source.root} holds {wrong!r}, which is no UTF-8", remedy="rename it")


def build_descriptor(
    backbone: TrainedBackbone, config: FeatureConfig
) -> tuple[TrainedBackbone, Layout]:
    """The backbone as it gives what was asked for, and how its rows are laid out.

    Raises:
        OptionError: A block that the network does not have, or tokens of a network without any.
    """
    width = width_of(backbone.module)
    if not config.patches and not config.layers:
        return backbone, Layout(layers=None, grid=None, width=width)
    network = backbone.module
    if not isinstance(network, VisionTransformer):
        raise OptionError(
            "`patches` and `layers` need a vision transformer",
            remedy=f"{backbone.arch} gives one vector an image",
        )
    depth, layers = len(network.blocks), tuple(dict.fromkeys(config.layers or ())) or None
    if layers and max(layers) > depth:
        raise OptionError(
            f"`layers` {max(layers)}: {backbone.arch} has {depth} blocks", value=max(layers)
        )
    side = backbone.image_size // backbone.patch_size
    layout = Layout(layers=layers, grid=(side, side) if config.patches else None, width=width)
    module = BlockTokens(network, layers=layers or (depth,), patches=config.patches)
    return replace(backbone, module=module.eval()), layout


def check_space(output: Path, layout: Layout, count: int) -> None:
    """Refuse what the disk cannot hold: the output, and the scratch files it is made of.

    Raises:
        OptionError: With both sizes.
    """
    numbers = sum(math.prod(shape) for shape in layout.shapes().values())
    needed, free = 2 * 4 * numbers * count, shutil.disk_usage(output.parent).free
    if needed > free:
        raise OptionError(
            f"`output` {output} needs {needed / 1000000000.0:.4g} GB of disk while it is written (2 "
            f"x {count} images x {numbers} float32) and {free / 1000000000.0:.4g} GB are free",
            value=output,
            remedy="leave out `patches`, or write to another disk",
        )


def write_arrays(
    output: Path, source: ImageSource, layout: Layout, batches: Iterator[Arrays]
) -> None:
    """Collect the batches in scratch files and write the output, whole or not at all.

    Args:
        output: Of a known kind.
        source: Names, labels and classes, in the order of the rows.
        layout: Names and shapes of the arrays.
        batches: Arrays by name with B rows each, N in all.

    Raises:
        OptionError: The disk refuses.
    """
    with leaving_on_sigterm(), atomic_draft(output, "`output`") as draft:
        arrays = {
            name: _make_array(draft.with_name(f"{name}.npy"), (len(source), *shape))
            for name, shape in layout.shapes().items()
        }
        done = 0
        for batch in batches:
            for name, rows in batch.items():
                arrays[name][done : done + len(rows)] = rows
            done += len(next(iter(batch.values())))
        WRITERS[output.suffix](draft, source, arrays)


def _make_array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A float32 array on disk, its space taken at once: writing into a hole of a full disk ends the process."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
