"""Write the features of every image, with file names, to one file for other programs.

Batches go to scratch files next to the output, so memory use does not depend on the number of
images. The output is built from these files and moved into place when it is complete. Shapes: N
images, L selected blocks, D width, h w patch grid.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import shutil
import signal
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
from dino.runtime.context import Run
from dino.runtime.signals import leaving_on
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of one image's row.

    Attributes:
        layers: Block numbers, starting at 1, or None for only the network's output.
        grid: (h, w), or None without patch tokens.
        width: D.
    """

    layers: tuple[int, ...] | None
    grid: tuple[int, int] | None
    width: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the float32 shape of one image in each array, by the array's name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for ending in [""] if self.layers is None else [f"_{layer}" for layer in self.layers]:
            shapes[f"features{ending}"] = (self.width,)
            if self.grid is not None:
                shapes[f"patches{ending}"] = (*self.grid, self.width)
        return shapes

    def split(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Split the network's rows (B, ...) into arrays by name."""
        tokens = rows.reshape(len(rows), len(self.layers or (0,)), -1, self.width)
        arrays = []
        for layer in range(tokens.shape[1]):
            arrays.append(tokens[:, layer, 0])
            if self.grid is not None:
                arrays.append(tokens[:, layer, 1:])
        return {
            name: array.reshape(len(rows), *shape)
            for (name, shape), array in zip(self.shapes().items(), arrays, strict=True)
        }


def write_feature_file(config: FeatureFileConfig, run: Run) -> None:
    """Extract the features of every image and write `output`.

    Raises:
        DinoError: The output cannot be written, the weights do not fit, a folder is missing, or an
            image is unreadable.
    """
    output = check_output(config.features)
    runner = Runner(config, run)
    with run.processes.rank_zero_first():
        source = open_images(config.data.data_path)
        logger.info("source: %s", source.describe())
        check_names(source)
        stray = find_stray(source)
        if stray and run.processes.is_rank_zero:
            logger.warning("no labels are written: %s is not in a class folder", stray)
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
    """Return the output's path, after its ending and its folder are checked.

    Raises:
        OptionError: The ending is not supported, or the file cannot be written.
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
            remedy="name a file in an existing, writable folder",
        )
    return path


def check_names(source: ImageSource) -> None:
    """Check that all file names are UTF-8.

    Raises:
        DataError: A name is not UTF-8.
    """
    wrong = next(
        (name for name in source.names if name.encode("utf-8", "replace").decode() != name), None
    )
    if wrong is not None:
        raise DataError(f"{source.root} holds {wrong!r}, which is not UTF-8", remedy="rename it")


def build_descriptor(
    backbone: TrainedBackbone, config: FeatureConfig
) -> tuple[TrainedBackbone, Layout]:
    """Return the descriptor that the settings select, and the layout of its rows.

    Raises:
        OptionError: The network lacks the block, or has no tokens.
    """
    width = width_of(backbone.module)
    if not config.patches and not config.layers:
        return backbone, Layout(layers=None, grid=None, width=width)
    network = backbone.module
    if not isinstance(network, VisionTransformer):
        raise OptionError(
            "`patches` and `layers` need a vision transformer",
            remedy=f"{backbone.arch} returns one vector per image",
        )
    depth, layers = len(network.blocks), tuple(dict.fromkeys(config.layers or ())) or None
    if layers and max(layers) > depth:
        raise OptionError(
            f"`layers` must be at most {depth}, the blocks of {backbone.arch} (got {max(layers)})",
            value=max(layers),
        )
    side = backbone.image_size // backbone.patch_size
    layout = Layout(layers=layers, grid=(side, side) if config.patches else None, width=width)
    module = BlockTokens(network, layers=layers or (depth,), patches=config.patches)
    return replace(backbone, module=module.eval()), layout


def check_space(output: Path, layout: Layout, count: int) -> None:
    """Check that the disk can hold the output and its scratch files.

    Raises:
        OptionError: There is not enough space. The text states both sizes.
    """
    numbers = sum(math.prod(shape) for shape in layout.shapes().values())
    needed, free = 2 * 4 * numbers * count, shutil.disk_usage(output.parent).free
    if needed > free:
        raise OptionError(
            f"`output` {output} needs {needed / 1e9:.4g} GB of disk while it is written "
            f"(2 x {count} images x {numbers} float32) and {free / 1e9:.4g} GB are free",
            value=output,
            remedy="leave out `patches`, or write to another disk",
        )


def write_arrays(
    output: Path, source: ImageSource, layout: Layout, batches: Iterator[Arrays]
) -> None:
    """Collect the batches in scratch files and write the output atomically.

    Args:
        output: Path with an ending of `WRITERS`.
        source: Names, labels and classes, in the order of the rows.
        layout: Names and shapes of the arrays.
        batches: Arrays by name with B rows each, N in total.

    Raises:
        OptionError: The file cannot be written.
    """
    with leaving_on(signal.SIGTERM), atomic_draft(output, "`output`") as draft:
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
    """Create a float32 array on disk, fully allocated: writing a hole on a full disk is fatal."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
