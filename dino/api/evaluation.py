"""Frozen backbones: features, scores, attention maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dino.api.inputs import InFormat, extract, is_path, lend, open_plain_run, open_source, open_splits
from dino.config import as_recipe, build
from dino.data.photometric import build_normalisation
from dino.evaluation.config import LinearConfig
from dino.evaluation.knn import KnnScore, score_knn
from dino.evaluation.linear import evaluate_linear
from dino.evaluation.linear_head import LinearScore
from dino.models.vit import VisionTransformer
from dino.visualization.attention import AttentionReader, ClsAttention


@dataclass(frozen=True)
class Embeddings:
    """Features of images, in the order of the data set.

    Attributes:
        vectors: (N, D) float32 on the CPU, not normalized.
        names: File name or number of each image.
        labels: (N,) int64, or None where the images have none.
    """

    vectors: Tensor
    names: list[str]
    labels: Tensor | None = None


def embed(
    backbone: nn.Module,
    images: Any,
    *,
    device: str | None = None,
    precision: str | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Embeddings:
    """Run a backbone over the center crop of every image.

    Args:
        backbone: From `load`, or any module (B, 3, H, W) -> (B, D) that wants ImageNet's normalization.
        images: A path (folder, tar shards, list of files, "demo"), a list of paths, PIL images, uint8 arrays or
            tensors, a map-style torch Dataset of these, with labels or not, or a tensor (N, C, H, W) uint8.
        device: hpu, cuda or cpu; by default the best there is.
        precision: fp32 (default), bf16 or fp16.
        batch_size: Images a device sees at a time.
        num_workers: Loader processes; by default at most ten and one a core for paths, none for data in memory.

    Raises:
        DataError: There are no images, or one cannot be read.
    """
    source = open_source(images)
    with open_plain_run(device, precision) as run:
        found = extract(backbone, [source], run, batch_size=batch_size, num_workers=num_workers, normalize=False)
    features = found[0]
    labels = features.labels.cpu() if bool((features.labels >= 0).all()) else None
    return Embeddings(features.features.float().cpu(), list(source.names), labels)


def knn(
    backbone: nn.Module,
    data: Any,
    *,
    k: int | Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    device: str | None = None,
    precision: str | None = None,
    batch_size: int = 128,
    num_workers: int | None = None,
) -> dict[int, KnnScore]:
    """Score a frozen backbone by weighted k-NN (paper, section 4.1).

    Args:
        backbone: As `embed` takes it.
        data: A folder that holds train and val, each with class folders; or a pair (train, val) of what `embed` takes,
            with labels.
        k: Numbers of neighbors; those above the number of training images count as that number.
        temperature: Of the vote.
        device: As in `embed`.
        precision: As in `embed`.
        batch_size: As in `embed`.
        num_workers: As in `embed`.

    Returns:
        By k: `top1` and `top5`, percent of the val images.

    Raises:
        DataError: A split is missing, or has no labels.
    """
    train, test = open_splits(data)
    neighbors = list(dict.fromkeys(min(each, len(train)) for each in ([k] if isinstance(k, int) else k)))
    classes = max(max(train.labels or (0,)), max(test.labels or (0,))) + 1
    with open_plain_run(device, precision) as run:
        found = extract(backbone, (train, test), run, normalize=True, batch_size=batch_size, num_workers=num_workers)
        return score_knn(found[0], found[1], neighbours=neighbors, temperature=temperature, classes=classes, run=run)


def linear_probe(backbone: nn.Module, data: Any, output_dir: str | os.PathLike[str], **settings: Any) -> LinearScore:
    """Train a linear classifier on a frozen backbone, and score it on the val images (paper, section 4.1).

    Args:
        backbone: From `load`.
        data: As `knn` takes it.
        output_dir: Folder of the layer's checkpoint and log.txt; the same call continues from it.
        **settings: Named like the flags of eval_linear.py: `epochs`, `lr`, `n_last_blocks`, `cache_features`, `device`.

    Returns:
        Loss, top-1 and top-5 (percent) of the last validation.

    Raises:
        TypeError: A keyword that is no setting.
        DinoError: Wrong values, missing folders, or a checkpoint of another probe in the folder.
    """
    given = {"output_dir": output_dir, **({"data_path": data} if is_path(data) else {}), **settings}
    config = build(LinearConfig, given)
    splits = open_splits(data)
    with open_plain_run(config.device.device) as run, lend(backbone, run) as trained:
        return evaluate_linear(config, run, recipe=as_recipe(config, given), backbone=trained, splits=splits)


def attention(
    backbone: nn.Module,
    images: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> list[Tensor]:
    """Self-attention of the CLS token in the last block, a map for each head.

    Args:
        backbone: A vision transformer from `load`.
        images: As `embed` takes them.
        image_size: (H, W) in pixels that each image is resized to, or its shorter side; by default as it is.
        device: As in `embed`.
        precision: As in `embed`.

    Returns:
        For each image (heads, h, w) float32 on the CPU, a number for each patch.

    Raises:
        DataError: An image cannot be read, or is smaller than a patch.
        TypeError: The backbone is no vision transformer of this package.
    """
    if not isinstance(backbone, VisionTransformer):
        raise TypeError(f"only vision transformers have attention maps (got {type(backbone).__name__})")
    source, size = open_source(images), (image_size,) if isinstance(image_size, int) else image_size
    with open_plain_run(device, precision) as run, lend(backbone, run) as trained:
        reader = AttentionReader(
            patch_size=backbone.patch_size,
            in_chans=trained.in_chans,
            infer=run.device.compile_eval(InFormat(ClsAttention(backbone), run)),
            normalisation=build_normalisation(trained.in_chans, trained.normalisation),
            run=run,
        )
        views = (reader.cut(source.read(i, reader.in_chans), size, source.names[i]) for i in range(len(source)))
        return [reader.read_maps(view[None])[0] for view in views]
