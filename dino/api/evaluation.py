"""Frozen backbones: features, scores, attention maps."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dino.api.inputs import (
    InFormat,
    check_settings,
    extract,
    is_path,
    lend,
    open_frozen_run,
    open_source,
    open_splits,
    refuse_made,
)
from dino.config import as_recipe, build
from dino.data.photometric import build_normalization
from dino.evaluation.config import LinearConfig
from dino.evaluation.knn import KnnScore, score_knn
from dino.evaluation.linear.head import LinearScore
from dino.evaluation.linear.probe import evaluate_linear
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.vit import VisionTransformer
from dino.visualization.attention import AttentionReader, ClsAttention, check_size

# The settings of a probe that a backbone and images in a program's hands have made.
MADE = (
    "data_path",
    *(field.name for kind in (BackboneConfig, WeightsConfig) for field in dataclasses.fields(kind)),
)


@dataclass(frozen=True)
class Embeddings:
    """Features of images, in the order of the data set.

    Attributes:
        vectors: (N, D) float32 on the CPU, not normalized.
        names: Of each image: its file's name below the folder, its path in a list of paths, else its number.
        labels: (N,) int64 on the CPU, or None unless every image has a label.
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
    batch_size_per_device: int = 128,
    num_workers: int | None = None,
) -> Embeddings:
    """Run a backbone over the center crop of every image.

    Args:
        backbone: From `load`, or any module that takes (B, 3, 224, 224) float32 with ImageNet's normalization to
            (B, D). It comes back on the device it was on, in the mode it was in.
        images: A path (folder, tar shards, list of files, "demo", one picture); a list of paths, PIL images, uint8
            arrays (H, W, C) or tensors (C, H, W), of any sizes; a map-style torch Dataset of these, or of tuples
            (image, label, ...); or a uint8 tensor (N, C, H, W).
        device: hpu, cuda, cpu or ipu; by default the best there is.
        precision: fp32 (default), bf16 or fp16.
        batch_size_per_device: Images a device sees at a time.
        num_workers: Loader processes; by default at most ten and one a core, and none for lists and tensors in memory.

    Raises:
        DataError: There are no images, or one cannot be read.
        DeviceError: The device, or the number format on it, is not available.
        OptionError: A value is of another type, or out of its limits.
        TypeError: The backbone gives no tensor.
    """
    settings = check_settings(
        device=device,
        precision=precision,
        batch_size_per_device=batch_size_per_device,
        num_workers=num_workers,
    )
    source = open_source(images)
    with open_frozen_run(settings.device, settings.precision) as run:
        found = extract(backbone, [source], run, settings.data, normalize=False)[0]
    labels = found.labels.cpu() if bool((found.labels >= 0).all()) else None
    return Embeddings(found.features.float().cpu(), list(source.names), labels)


def knn(
    backbone: nn.Module,
    data: Any,
    *,
    nb_knn: int | Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    device: str | None = None,
    precision: str | None = None,
    batch_size_per_device: int = 128,
    num_workers: int | None = None,
) -> dict[int, KnnScore]:
    """Score a frozen backbone by weighted k-NN (paper, section 4.1).

    Args:
        backbone: As `embed` takes it.
        data: A folder that holds train and val, each with class folders; or a pair (train, val) of what `embed` takes,
            with labels. A Dataset that has no `targets` is read once more for its labels.
        nb_knn: Numbers of neighbors; those above the number of training images count as that number.
        temperature: Of the vote.
        device: As in `embed`.
        precision: As in `embed`.
        batch_size_per_device: As in `embed`.
        num_workers: As in `embed`.

    Returns:
        For each of `nb_knn` `top1` and `top5`, percent of the val images.

    Raises:
        DataError: A split is missing, has no labels or other classes than the other one, or an image cannot be read.
        DeviceError: As in `embed`.
        OptionError: As in `embed`.
        TypeError: As in `embed`.
    """
    settings = check_settings(
        **{"nb_knn": nb_knn, "temperature": temperature, "device": device, "precision": precision},
        **{"batch_size_per_device": batch_size_per_device, "num_workers": num_workers},
    )
    splits = open_splits(data)
    vote = settings.vote
    with open_frozen_run(settings.device, settings.precision) as run:
        train, test = extract(backbone, splits, run, settings.data, normalize=True)
        return score_knn(train, test, neighbors=vote.nb_knn, temperature=vote.temperature, run=run)


def linear_probe(
    backbone: nn.Module,
    data: Any,
    output_dir: str | os.PathLike[str],
    *,
    precision: str | None = None,
    **settings: Any,
) -> LinearScore:
    """Train a linear classifier on a frozen backbone, and score it on the val images (paper, section 4.1).

    While it trains on the CPU, the process keeps the memory it frees, as in `pretrain`.

    Args:
        backbone: From `load`.
        data: As `knn` takes it.
        output_dir: Folder of the layer's checkpoint, log.txt and TensorBoard events; the same call continues from it.
        precision: Of the backbone, as in `embed`; the layer is float32.
        **settings: Named like the flags of eval_linear.py: `epochs`, `lr`, `n_last_blocks`, `cache_features`, `device`,
            `batch_size_per_device` and so on; defaults are theirs.

    Returns:
        `loss`, `top1` and `top5` (percent; None for fewer than five classes) of the last validation.

    Raises:
        TypeError: A keyword that is no setting, or a backbone that does not know the width of its features.
        DinoError: Wrong values, missing folders, unreadable images, or a checkpoint of another probe in the folder.
    """
    refuse_made("linear_probe", settings, MADE)
    if not hasattr(backbone, "embed_dim"):
        raise TypeError(
            f"the backbone must come from dino.load, or have `embed_dim` (got {type(backbone).__name__})"
        )
    given = {"output_dir": output_dir, **({"data_path": data} if is_path(data) else {}), **settings}
    config = build(LinearConfig, given)
    number_format = check_settings(precision=precision).precision
    splits = open_splits(data)
    with open_frozen_run(config.device, number_format) as run, lend(backbone, run) as trained:
        return evaluate_linear(
            config,
            run,
            recipe=as_recipe(config, given),
            backbone=trained,
            splits=splits,
            wrap=lambda module: InFormat(module, run),
        )


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
        image_size: (H, W) in pixels that each image is resized to, or its shorter side; by default it stays as it is.
            What no whole patch covers is cut off at the right and the bottom.
        device: As in `embed`.
        precision: As in `embed`.

    Returns:
        For each image (heads, h, w) float32 on the CPU, a number for each patch; they and that of the CLS token itself
        add up to 1 in each head.

    Raises:
        DataError: An image cannot be read, or is smaller than a patch.
        DeviceError: As in `embed`.
        OptionError: As in `embed`.
        TypeError: The backbone is no vision transformer of this package.
    """
    if not isinstance(backbone, VisionTransformer):
        raise TypeError(
            f"only vision transformers have attention maps (got {type(backbone).__name__})"
        )
    size = None if image_size is None else check_settings(image_size=image_size).pictures.image_size
    check_size("`image_size`", size)
    settings, source = check_settings(device=device, precision=precision), open_source(images)
    with (
        open_frozen_run(settings.device, settings.precision) as run,
        lend(backbone, run) as trained,
    ):
        reader = AttentionReader(
            patch_size=backbone.patch_size,
            in_chans=trained.in_chans,
            infer=run.device.compile_eval(InFormat(ClsAttention(backbone), run)),
            normalization=build_normalization(trained.in_chans, trained.normalization),
            run=run,
        )
        views = (
            reader.cut(source.read(i, reader.in_chans), size, source.names[i])
            for i in range(len(source))
        )
        return [reader.read_maps(view[None])[0] for view in views]
