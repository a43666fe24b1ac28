"""Copy detection on Copydays: search the original of each edited copy.

Paper, section 4.2.1; eval_copy_detection.py of the original. Shapes: N database images, M queries,
D width of a descriptor.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino.data.crops import resize_square
from dino.data.image_source import ImageSource
from dino.data.sources import list_images
from dino.errors import OptionError
from dino.evaluation.config import CopyDetectionConfig
from dino.evaluation.descriptors import ClsGem
from dino.evaluation.neighbors import ExactIndex, split_queries
from dino.evaluation.retrieval.copydays import Block, open_copydays
from dino.evaluation.retrieval.ranking import compute_average_precision
from dino.evaluation.runner import Runner
from dino.models.vit import VisionTransformer
from dino.runtime.context import Run
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)

DEPTH = 20  # top results of a query in which an original counts as found
WHITENING_EXPONENT = 0.5  # of the inverse eigenvalues; 0.5 gives every direction the same variance
# Smallest eigenvalue relative to the largest; smaller ones are raised (utils.PCA of the original).
LEAST_EIGENVALUE = 1e-5


def evaluate_copy_detection(config: CopyDetectionConfig, run: Run) -> dict[str, float]:
    """Search each copy among originals and distractors, and log one result line per block.

    Returns:
        Mean average precision, 0 to 1, of each block, on every process.

    Raises:
        DinoError: The weights do not fit, the network has no patch tokens, a folder is missing, or
            an image is unreadable.
    """
    runner = Runner(config, run, keep_on_device=config.store.store_on_device)
    copydays = open_copydays(config.data.data_path)
    distractors = _open(config.copy_detection.distractors_path, "`distractors_path`")
    whitening = _open(config.copy_detection.whitening_path, "`whitening_path`")
    extractor = build_extractor(runner.load_backbone(center_crops=False), config.size.imsize)
    cut = functools.partial(resize_square, size=config.size.imsize)

    def extract(source: ImageSource) -> Tensor:
        return runner.extract(extractor, source, cut=cut, normalize=False).features

    queries = extract(copydays.source)
    database = queries[: len(copydays.blocks[0].positives)]
    if distractors is not None:
        database = torch.cat([database, extract(distractors)])
    if whitening is not None:
        mean, operator = fit_whitening(extract(whitening))
        queries, database = ((rows - mean) @ operator.T for rows in (queries, database))
    nearest = find_nearest(F.normalize(database, dim=1), F.normalize(queries, dim=1), DEPTH)
    scores = score_blocks(nearest, copydays.blocks)
    for name, score in scores.items():
        logger.info("eval on %s mAP=%.3f", name, score)
    runner.report({"queries": len(queries), "database": len(database), "map": scores})
    return scores


def build_extractor(backbone: TrainedBackbone, size: int) -> TrainedBackbone:
    """Wrap the backbone so that it returns CLS and GeM.

    Args:
        backbone: A vision transformer.
        size: Side of the images in pixels.

    Raises:
        OptionError: The network has no patch tokens, or the images are smaller than a patch.
    """
    if not isinstance(backbone.module, VisionTransformer):
        raise OptionError(
            f"`arch` {backbone.arch} has no patch tokens",
            value=backbone.arch,
            remedy="copy detection needs a vision transformer",
        )
    if size < backbone.patch_size:
        raise OptionError(
            f"`imsize` must be at least one patch, {backbone.patch_size} pixels (got {size})",
            value=size,
        )
    return dataclasses.replace(backbone, module=ClsGem(backbone.module))


def fit_whitening(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a whitening transform, which gives features the same variance in all directions.

    Args:
        rows: (n, D) features.

    Returns:
        The mean (D,) and the operator (D, D) of the principal components, on the device of `rows`.
        Whiten x by (x - mean) @ operator.T.
    """
    mean = rows.mean(dim=0)
    exact = rows.cpu().double()
    operator = compute_whitening((exact.T @ exact / len(exact)).numpy())
    return mean, torch.from_numpy(operator).float().to(rows.device)


def compute_whitening(covariance: np.ndarray, exponent: float = WHITENING_EXPONENT) -> np.ndarray:
    """Divide principal components by a power of their variance.

    This is utils.PCA of the original, with all D dimensions.

    Args:
        covariance: (D, D), symmetric.
        exponent: 0 only rotates, 0.5 whitens.

    Returns:
        (D, D) float64, one component per row, in the order of decreasing variance.
    """
    variances, components = np.linalg.eigh(covariance.astype(np.float64))
    variances = np.maximum(variances, variances.max() * LEAST_EIGENVALUE)
    operator: np.ndarray = (components / variances**exponent).T[::-1].copy()
    return operator


def find_nearest(database: Tensor, queries: Tensor, depth: int) -> Tensor:
    """Find the `depth` most similar rows of the database for each query, the nearest first.

    Args:
        database: (N, D), normalized. The search runs on its device.
        queries: (M, D), normalized.
        depth: Number of results, capped at N.

    Returns:
        (M, depth) int64 indices, in host memory.
    """
    index, depth = ExactIndex(database), min(depth, len(database))
    chunks = split_queries(queries, len(database))
    return torch.cat(
        [
            index.search(chunk.to(database.device), depth).places.cpu()[:count]
            for chunk, count in chunks
        ]
    )


def score_blocks(nearest: Tensor, blocks: tuple[Block, ...]) -> dict[str, float]:
    """Compute the mean average precision of each block.

    Args:
        nearest: (M, depth) indices of originals and distractors, in the order of the blocks.
        blocks: Blocks with M queries in total.

    Returns:
        {name: 0 to 1}.
    """
    scores, rows = {}, iter(nearest.numpy())
    for block in blocks:
        precisions = [
            compute_average_precision(
                np.flatnonzero(np.isin(next(rows), positives)), len(positives)
            )
            for positives in block.positives
        ]
        scores[block.name] = float(np.mean(precisions))
    return scores


def _open(path: str | None, setting: str) -> ImageSource | None:
    if not path:
        return None
    source = list_images(Path(path), setting)
    logger.info("source (%s): %s", setting, source.describe())
    return source
