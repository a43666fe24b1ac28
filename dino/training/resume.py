"""Decide from a checkpoint whether a run can continue, and at which iteration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino import checkpoint
from dino.checkpoint import read_args
from dino.errors import CheckpointError
from dino.training.plan import Plan

logger = logging.getLogger(__name__)

# A different value of one of these makes it a different run.
IDENTITY = (
    "arch",
    "patch_size",
    "in_chans",
    "pixel_range",
    "mean",
    "std",
    "global_crops_size",
    "out_dim",
    "norm_last_layer",
    "use_bn_in_head",
    "optimizer",
)
ADDED = ("pixel_range", "mean", "std")  # older checkpoints have none of these
PLACE = ("dist_url", "local_rank", "data_path", "output_dir")  # where it runs; changes not logged


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint stores about the run in addition to its settings.

    Attributes:
        iteration: Iterations done.
        iterations: Iterations per epoch.
        world: Number of processes.
        global_batch: Images per iteration.
        images: Number of images.
        fingerprint: Digest of the image names.
    """

    iteration: int
    iterations: int
    world: int
    global_batch: int
    images: int
    fingerprint: str


def is_other_run(state: Mapping[str, Any], args: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written with another network or optimizer than `args` say."""
    before = read_args(state)
    return any(name in before and before[name] != args[name] for name in IDENTITY)


def find_position(state: Mapping[str, Any], args: Mapping[str, Any], now: Identity) -> int:
    """Decide at which iteration the run continues.

    Args:
        state: The checkpoint.
        args: The settings of this run.
        now: This run's identity; its `iteration` is ignored.

    Returns:
        The iteration, counted in this run's iterations per epoch.

    Raises:
        CheckpointError: The checkpoint belongs to another run, or the global batch changed in the
            middle of an epoch.
    """
    before = dict.fromkeys(ADDED) | dict(read_args(state))
    for name in IDENTITY:
        if name in before and before[name] != args[name]:
            raise _other_run(name, before[name], args[name])
    _log_changes(before, args)
    epoch = int(state.get("epoch", 0))
    if "identity" not in state.get("resume", {}):
        logger.info(
            "the checkpoint is the original's: continuing at epoch %d with new draws of images and "
            "crops",
            epoch,
        )
        return epoch * now.iterations
    then = Identity(**state["resume"]["identity"])
    if (then.images, then.fingerprint) != (now.images, now.fingerprint):
        raise _other_run(
            "images", f"{then.images} ({then.fingerprint})", f"{now.images} ({now.fingerprint})"
        )
    if then.global_batch != now.global_batch:
        return _change_batch(then, now)
    if then.world != now.world:
        logger.info(
            "processes %d -> %d at a global batch of %d: continuing at iteration %d with the same "
            "images and crops in each update; sums run in another order, and stochastic depth is "
            "drawn anew",
            *(then.world, now.world, now.global_batch, then.iteration),
        )
    return then.iteration


def is_over(folder: Path, plan: Plan, iteration: int) -> bool:
    """Whether more epochs are done than the run asks for; says so."""
    over = iteration > plan.epochs * plan.iterations
    if over:
        done = iteration / plan.iterations
        text = "%s has %.4g epochs, `epochs` %d asks for fewer: nothing to train"
        logger.info(text, folder / checkpoint.LATEST, done, plan.epochs)
    return over


def select_published(state: Mapping[str, Any]) -> dict[str, Any]:
    """Select the part of a checkpoint that people publish: the teacher's backbone and its settings.

    Settings that say where the run took place are left out.
    """
    teacher = {
        name: tensor for name, tensor in state["teacher"].items() if name.startswith("backbone.")
    }
    args = {
        name: value
        for name, value in state["args"].items()
        if name in IDENTITY or not (name in PLACE or _is_path(value))
    }
    kept = {"teacher": teacher, "epoch": state["epoch"], "args": args}
    return {**kept, "normalisation": state["normalisation"]}


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and any(sign in value for sign in "/\\~")


def _change_batch(then: Identity, now: Identity) -> int:
    change = (
        f"processes {then.world} -> {now.world}, "
        f"global batch {then.global_batch} -> {now.global_batch}"
    )
    epoch, inside = divmod(then.iteration, then.iterations)
    if inside:
        raise CheckpointError(
            f"the checkpoint is {inside} iterations into epoch {epoch}, and {change}",
            remedy="until the epoch ends, choose `batch_size_per_device` and `accumulate_steps` "
            f"for a global batch of {then.global_batch}, or use another `output_dir`",
        )
    logger.warning(
        "%s: continuing at epoch %d, not bit-identical to a run without the change", change, epoch
    )
    return epoch * now.iterations


def _log_changes(before: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    changed = [
        f"{name} {before[name]} -> {value}"
        for name, value in args.items()
        if name in before and _plain(before[name]) != _plain(value) and name not in PLACE
    ]
    if changed:
        logger.info("changed since the checkpoint, effective from now on: %s", ", ".join(changed))


def _plain(value: Any) -> Any:
    """Normalize older forms: the original stores tuples for our lists, and False for our None."""
    if isinstance(value, tuple):
        return list(value)
    return None if value is False else value


def _other_run(name: str, then: object, now: object) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint in `output_dir` belongs to a run with {name} {then}, this run has {now}",
        remedy="use the old value, or another `output_dir`",
    )
