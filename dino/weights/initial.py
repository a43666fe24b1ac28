"""Initialize a new run from the weights that `init_from` names."""

from __future__ import annotations

import logging

from torch import Tensor

from dino.models.multicrop import MultiCrop
from dino.stored import strip_wrappers
from dino.weights.network import is_vision_transformer
from dino.weights.read import read_weights, rename_to_ours, select_network
from dino.weights.resample import adapt_input
from dino.weights.validate import (
    ANYTHING,
    check_finite,
    check_network,
    check_square,
    list_beside_vit,
    match,
    read_center,
)

logger = logging.getLogger(__name__)


def load_initial_weights(
    student: MultiCrop, path: str, *, in_chans: int | None = None, patch_size: int | None = None
) -> Tensor | None:
    """Initialize a network from a file's teacher: always the backbone, and the head if it fits.

    Args:
        student: Loaded in place. A position embedding of another size is resampled.
        path: As in `read_weights`.
        in_chans: C, if the user set it. Only then is the first layer adapted to other channels.
        patch_size: P in pixels, if the user set it. Only then are the patches resampled.

    Returns:
        The file's center (1, K) if the head was loaded, or None.

    Raises:
        WeightsError: A tensor of the backbone is missing or has another shape.
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
    check_square(state, path)
    matched = match(student.backbone, backbone, path, beside)
    student.backbone.load_state_dict(matched.tensors)
    tensors = strip_wrappers(network)
    head = {
        name.removeprefix("head."): value
        for name, value in tensors.items()
        if name.startswith("head.")
    }
    stored_shapes = {name: value.shape for name, value in head.items()}
    needed_shapes = {name: value.shape for name, value in student.head.state_dict().items()}
    fits = stored_shapes == needed_shapes
    count, rest = (
        len(matched.tensors),
        " and the head" if fits else "; the head starts from scratch",
    )
    logger.info("`init_from` %s: %d of %d backbone tensors%s", path, count, count, rest)
    if not fits:
        return None
    check_finite(head, f"{path}: the head")
    student.head.load_state_dict(head)
    return read_center(state, len(student.head.last_layer.weight_v), path)
