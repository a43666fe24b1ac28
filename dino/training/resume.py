"""What a run's checkpoint says about whether, where and how exactly the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dino.checkpoint import read_args
from dino.errors import CheckpointError

logger = logging.getLogger(__name__)

# A run with another value of these is another run.
IDENTITY = (
    "arch",
    "patch_size",
    "in_chans",
    "global_crops_size",
    "out_dim",
    "norm_last_layer",
    "use_bn_in_head",
    "optimizer",
)
NEEDED = ("student", "teacher", "optimizer", "epoch", "dino_loss")
PLACE = ("dist_url", "local_rank", "data_path", "output_dir")  # where, not what: never worth a line


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint remembers of the run besides its options.

    Attributes:
        iteration: Updates done.
        iterations: Updates an epoch.
        world: Processes.
        global_batch: Images an update.
        images: Number of images.
        fingerprint: Digest of their names.
    """

    iteration: int
    iterations: int
    world: int
    global_batch: int
    images: int
    fingerprint: str


def check_complete(state: Mapping[str, Any]) -> None:
    """Refuse a file that no training run wrote.

    Raises:
        CheckpointError: The text names what it lacks.
    """
    missing = [name for name in NEEDED if name not in state]
    if missing:
        raise CheckpointError(
            f"the checkpoint in `output_dir` is no training checkpoint: it lacks {', '.join(missing)}",
            remedy="move it away, or name it with `init_from` and use another `output_dir`",
        )


def find_position(state: Mapping[str, Any], args: Mapping[str, Any], now: Identity) -> int:
    """Decide at which iteration the run continues.

    Args:
        state: The checkpoint.
        args: The options of this command line.
        now: This run's identity; its `iteration` does not matter.

    Returns:
        The iteration, in this run's counting.

    Raises:
        CheckpointError: The checkpoint belongs to another run, or processes or batch changed inside an epoch.
    """
    before = read_args(state)
    for name in IDENTITY:
        if name in before and before[name] != args[name]:
            raise _other_run(name, before[name], args[name])
    _log_changes(before, args)
    epoch = int(state.get("epoch", 0))
    if "identity" not in state.get("resume", {}):
        logger.info(
            "the checkpoint is the original's: continuing at epoch %d; images and crops are drawn anew",
            epoch,
        )
        return epoch * now.iterations
    then = Identity(**state["resume"]["identity"])
    if (then.images, then.fingerprint) != (now.images, now.fingerprint):
        raise _other_run(
            "images", f"{then.images} ({then.fingerprint})", f"{now.images} ({now.fingerprint})"
        )
    if (then.world, then.global_batch) == (now.world, now.global_batch):
        return then.iteration
    return _change_batch(then, now)


def _change_batch(then: Identity, now: Identity) -> int:
    change = f"processes {then.world} -> {now.world}, global batch {then.global_batch} -> {now.global_batch}"
    epoch, inside = divmod(then.iteration, then.iterations)
    if inside:
        raise CheckpointError(
            f"the checkpoint stands {inside} iterations inside epoch {epoch}, and {change}",
            remedy="finish the epoch with the old values, or use another `output_dir`",
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
        logger.info("changed since the checkpoint, in force from here on: %s", ", ".join(changed))


def _plain(value: Any) -> Any:
    """The original keeps ranges as tuples, and a switch that is off was False before it could be left open."""
    return list(value) if isinstance(value, tuple) else None if value is False else value


def _other_run(name: str, then: object, now: object) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint in `output_dir` belongs to a run with {name} {then}, now it is {now}",
        remedy="use the old value, or another `output_dir`",
    )
