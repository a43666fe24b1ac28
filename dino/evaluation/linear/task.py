"""The task of a linear probe, its images and frozen features, and the files of linear layers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from dino import checkpoint
from dino.config import chosen
from dino.data.image_source import ImageSource
from dino.data.sources import open_labelled_splits, open_validation_images
from dino.data.start_checks import check_count
from dino.errors import CheckpointError, OptionError, WeightsError
from dino.evaluation.config import LinearConfig
from dino.evaluation.descriptors import LastBlocks
from dino.evaluation.features import LoaderConfig
from dino.evaluation.linear.head import LinearHead
from dino.evaluation.runner import Runner
from dino.models.registry import is_vit, width_of
from dino.models.vit import VisionTransformer
from dino.stored import check_tensor
from dino.weights.hub import read_published
from dino.weights.load import TrainedBackbone
from dino.weights.validate import list_tensors, read_part, validate

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pth.tar"  # the original's name
BEST = "checkpoint_best.pth.tar"  # of the epoch with the best top-1
# Entries that are stored as a digest only, and the error text if one differs.
OTHERS = {
    "backbone": "another backbone",
    "classes": "other class folders",
    "images": "other images",
}
SETTINGS = ("n_last_blocks", "avgpool_patchtokens")  # settings that a layer depends on


@dataclass(frozen=True, kw_only=True)
class LinearTask:
    """The images and the features of a linear probe.

    Attributes:
        descriptor: The frozen backbone as a descriptor, (B, C, S, S) -> (B, D).
        train: Training images; None if a layer is only scored.
        test: Images to score on.
        reading: How images are read.
        identity: Everything a layer depends on: settings, a digest of the backbone and, to continue
            a run, of its images.
    """

    descriptor: TrainedBackbone
    train: ImageSource | None
    test: ImageSource
    reading: LoaderConfig
    identity: Mapping[str, Any]

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.test.classes)

    @property
    def width(self) -> int:
        """Width D of a feature."""
        return width_of(self.descriptor.module)


def open_task(
    config: LinearConfig,
    runner: Runner,
    *,
    backbone: TrainedBackbone | None = None,
    splits: tuple[ImageSource, ImageSource] | None = None,
) -> LinearTask:
    """List the images and load the backbone, unless they are passed.

    Raises:
        DinoError: A folder or the weights are missing, there are too few images, or the number of
            classes differs from `num_labels`.
    """
    probe, train = config.linear, None
    processes = runner.run.processes
    with processes.rank_zero_first():
        if splits is not None:
            train, test = splits
        elif probe.evaluate:
            test = open_validation_images(config.data.data_path)
        else:
            train, test = open_labelled_splits(config.data.data_path)
        if probe.evaluate:
            train = None
        if train is not None:
            train = train.limited(config.limit.data_limit)
            logger.info("source (train): %s", train.describe())
            check_count(train, config.data.batch_size_per_device * processes.world_size)
        logger.info("source (test): %s", test.describe())
        if probe.num_labels not in {None, len(test.classes)}:
            raise OptionError(
                f"`num_labels` must be {len(test.classes)}, the class folders of {test.root} "
                f"(got {probe.num_labels})",
                value=probe.num_labels,
                remedy="leave it out to follow the folders",
            )
    backbone = backbone or runner.load_backbone()
    identity: dict[str, Any] = {
        "backbone": compute_digest(backbone.module),
        "classes": digest_names(test.classes),
    }
    if is_vit(backbone.arch):
        identity |= {
            "n_last_blocks": choose_blocks(config, backbone),
            "avgpool_patchtokens": chosen(probe, "avgpool_patchtokens"),
        }
    if backbone.pixel_range is not None:
        identity["pixel_range"] = list(backbone.pixel_range)
    if train is not None:
        identity |= {
            "images": train.fingerprint(),
            "seed": config.run.seed,
            "cache_features": probe.cache_features,
        }
    descriptor = build_descriptor(backbone, config)
    return LinearTask(
        descriptor=descriptor, train=train, test=test, reading=runner.reading, identity=identity
    )


def build_descriptor(backbone: TrainedBackbone, config: LinearConfig) -> TrainedBackbone:
    """Return the descriptor of the settings. A network other than a ViT returns its plain features.

    Raises:
        OptionError: As `choose_blocks`.
    """
    probe, network = config.linear, backbone.module
    if not isinstance(network, VisionTransformer):
        for name in sorted(name for name in SETTINGS if getattr(probe, name) is not None):
            logger.warning(
                "`%s` has no meaning for %s: its plain features are used", name, backbone.arch
            )
        return backbone
    module = LastBlocks(
        network,
        blocks=choose_blocks(config, backbone),
        average_patches=bool(probe.avgpool_patchtokens),
    )
    return replace(backbone, module=module.eval())


def choose_blocks(config: LinearConfig, backbone: TrainedBackbone) -> int:
    """Return the number of last blocks of a ViT: by default all of a network that has fewer.

    Raises:
        OptionError: `n_last_blocks` is larger than the depth of the network.
    """
    depth, wanted = (
        len(cast(VisionTransformer, backbone.module).blocks),
        config.linear.n_last_blocks,
    )
    if wanted is None:
        return min(int(chosen(config.linear, "n_last_blocks")), depth)
    if wanted > depth:
        raise OptionError(
            f"`n_last_blocks` must be at most {depth} for {backbone.arch} (got {wanted})",
            value=wanted,
        )
    return wanted


def compute_digest(module: nn.Module) -> str:
    """Compute a digest of a network's weights on the host. It does not depend on the file."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def digest_names(names: Sequence[str]) -> str:
    """Compute a digest of class names in their order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def load_head(
    head: LinearHead, path: Path, identity: Mapping[str, Any], *, published: bool = False
) -> dict[str, Any]:
    """Load a head from a file: ours, the original's or a published one. Returns its contents.

    Args:
        head: Loaded in place.
        path: The file.
        identity: The identity of the task. Only our files have one to compare with.
        published: Whether the file is from `find_published`.

    Raises:
        WeightsError: The layer is missing or has another shape.
        CheckpointError: The file is missing or damaged, or belongs to another task.
    """
    state = read_published(path) if published else validate(checkpoint.load_file(path), path)
    tensors = list_tensors(state, path)
    for name, own in head.state_dict().items():
        if name not in tensors:
            raise WeightsError(
                f"{path} holds no linear layer ({name} is missing)",
                remedy=f"eval_linear.py writes {CHECKPOINT}",
            )
        if tensors[name].shape != own.shape:
            raise WeightsError(
                f"{path}: {name} must be {tuple(own.shape)} for these classes and features "
                f"(got {tuple(tensors[name].shape)})",
                remedy="check `data_path`, `arch`, `n_last_blocks` and `avgpool_patchtokens`",
            )
        check_tensor(name, tensors[name], own, path)
    stored = read_part(state, "identity", path)
    for name, value in identity.items():
        if name in stored and stored[name] != value:
            other = OTHERS.get(name, f"`{name}` {stored[name]}, not {value}")
            raise CheckpointError(
                f"{path} was trained with {other}",
                remedy="use those again, or another file or `output_dir`",
            )
    head.load_state_dict({name: tensors[name] for name in head.state_dict()})
    unknown = "" if stored else ", whose training task is unknown"
    logger.info("linear layer: %s%s", path, unknown)
    return state
