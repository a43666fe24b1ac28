"""Reading and atomically writing checkpoint files.

The keys are the original's (`student`, `teacher`, `optimizer`, `epoch`, `args`, `dino_loss`,
`fp16_scaler`), so that its evaluation code can read our files. `resume` holds what exact
continuation needs in addition. Our files hold only tensors and plain values and can be opened with
`torch.load(weights_only=True)`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino.errors import CheckpointError
from dino.files import atomic_write
from dino.plain_pickle.torch_file import check_torch_file
from dino.stored import check_values

LATEST = "checkpoint.pth"
PREVIOUS = "checkpoint_previous.pth"
BEST = "checkpoint_best.pth"
TEACHER = "teacher_backbone.pth"
TEACHER_TENSORS = "teacher_backbone.safetensors"
FORMAT = 2  # of our own checkpoints; a file without the key has format 1
OWN_KEYS = ("resume", "identity")  # of training checkpoints and of linear-probe checkpoints


def save_file(path: Path, state: Mapping[str, Any] | Tensor) -> None:
    """Write a file atomically: write a temporary file alongside, fsync, rename.

    Raises:
        CheckpointError: The folder is not writable, or the disk is full; the old file is untouched.
    """
    with _temporary(path) as temporary, temporary.open("wb") as file:
        torch.save(state if isinstance(state, Tensor) else dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def save_latest(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `checkpoint.pth` and keep its predecessor as `checkpoint_previous.pth`.

    At least one of the two is intact at any time.

    Raises:
        CheckpointError: As `save_file`.
    """
    latest = folder / LATEST
    if latest.exists():
        with _temporary(folder / PREVIOUS) as temporary:
            _duplicate(latest, temporary)
    save_file(latest, state)


def keep_copy(folder: Path, epoch: int, keep: int) -> None:
    """Also keep the newest checkpoint as `checkpointNNNN.pth` (a hard link); prune the oldest.

    Args:
        folder: The run's output folder.
        epoch: The number N, as in the original.
        keep: How many numbered checkpoints to keep; 0 keeps all.
    """
    with _temporary(folder / f"checkpoint{epoch:04}.pth") as temporary:
        _duplicate(folder / LATEST, temporary)
    numbered = sorted(folder.glob("checkpoint[0-9][0-9][0-9][0-9].pth"))
    for old in numbered[:-keep] if keep else ():
        old.unlink()


def keep_best(path: Path) -> None:
    """Also keep a run's checkpoint as `checkpoint_best.pth` next to it (a hard link).

    Raises:
        CheckpointError: As `save_file`.
    """
    with _temporary(path.with_name(BEST)) as temporary:
        _duplicate(path, temporary)


def is_begun(folder: Path) -> bool:
    """Whether a run has saved in this folder; the same command continues it."""
    return any((folder / name).exists() for name in (LATEST, PREVIOUS))


def load_latest(
    folder: Path, *, set_aside: bool, check: Callable[[dict[str, Any], Path], None] | None = None
) -> tuple[dict[str, Any], Path, list[str]] | None:
    """Read the newest intact checkpoint of a run; the best one if those that follow are damaged.

    Args:
        folder: The run's output folder.
        check: Raises `CheckpointError` for a state whose content is damaged, given its file.
        set_aside: Rename damaged files to `*.damaged`, so that the next save does not mistake them
            for intact ones, and delete partial files left by a killed process.

    Returns:
        The state, its file and one line per newer damaged file; None if there is no checkpoint.

    Raises:
        CheckpointError: There are checkpoints, but none can be read.
    """
    for stale in folder.glob(".*.pth.*.tmp") if set_aside else ():
        stale.unlink()
    names = (LATEST, PREVIOUS, BEST)
    candidates = [folder / name for name in names if (folder / name).exists()]
    damaged: list[str] = []
    for path in candidates:
        try:
            state = load_file(path)
            if check is not None:
                check(state, path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for newer in candidates[: len(damaged)] if set_aside else ():
            newer.rename(newer.with_name(f"{newer.name}.damaged"))
        if set_aside and path.name == BEST:  # it alone does not begin a run
            with _temporary(folder / PREVIOUS) as temporary:
                _duplicate(path, temporary)
        return state, path, damaged
    if damaged:
        raise CheckpointError(
            "; ".join(damaged),
            remedy="move them away to start from scratch, or use another `output_dir`",
        )
    return None


def check_complete(
    state: Mapping[str, Any], needed: Iterable[str], cause: str, *, remedy: str
) -> None:
    """Check that a checkpoint holds what a run needs to resume.

    Raises:
        CheckpointError: `cause`, followed by the names that are missing.
    """
    missing = [name for name in needed if name not in state]
    if missing:
        raise CheckpointError(f"{cause}: it lacks {', '.join(missing)}", remedy=remedy)


def read_mode(folder: Path | str) -> str | None:
    """Execution mode of the run whose newest intact checkpoint is in `folder`; None if unknown.

    Called before the device is opened, because opening fixes the device's mode.
    """
    for name in (LATEST, PREVIOUS, BEST):
        with contextlib.suppress(CheckpointError):
            resume = load_file(Path(folder, name), mapped=True).get("resume")
            mode = resume.get("mode") if isinstance(resume, Mapping) else None
            return mode if isinstance(mode, str) else None
    return None


def load_file(path: Path | str, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint or weights file into host memory; only tensors and plain values unpickle.

    `argparse.Namespace` and numpy scalars are allowed in addition, because the original saves both.

    Args:
        path: The file.
        mapped: Leave the tensors on disk until first use, without comparing their checksums; fast
            if only plain values are needed.

    Raises:
        CheckpointError: The file is missing, damaged, foreign, or holds other pickled objects or
            tensors that are not dense.
    """
    try:
        with _allowing():
            state = load_tensors(path, mapped=mapped)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except Exception as error:  # noqa: BLE001 - damaged files raise all kinds of errors
        raise CheckpointError(f"{path} is damaged or not a checkpoint: {_reason(error)}") from error
    if not isinstance(state, dict):
        kind = type(state).__name__
        raise CheckpointError(f"{path} must hold a dictionary of tensors (got {kind})")
    check_values(state, path)
    written = state.get("format")
    if isinstance(written, int) and written > FORMAT and any(key in state for key in OWN_KEYS):
        raise CheckpointError(
            f"{path} has checkpoint format {written}, this version reads up to {FORMAT}",
            remedy="update the package",
        )
    return state


def load_tensors(path: Path | str, *, mapped: bool = False) -> Any:
    """`torch.load` of tensors and plain values into host memory, safe for files of any origin.

    Args:
        path: The file.
        mapped: As in `load_file`.

    Raises:
        Exception: Of any type, if the file is damaged or holds more; the process survives.
    """
    check_torch_file(path, mapped=mapped)
    more = {"mmap": True} if mapped else {}
    return torch.load(path, map_location="cpu", weights_only=True, **more)


def read_args(state: Mapping[str, Any]) -> dict[str, Any]:
    """The options stored in a checkpoint, from a dictionary (ours) or a namespace (original's)."""
    args = state.get("args")
    if isinstance(args, Mapping):
        return dict(args)
    return vars(args) if isinstance(args, argparse.Namespace) else {}


def _reason(error: Exception) -> str:
    """The first sentence of torch's message, without its advice to unpickle everything."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return (
            f"it holds the pickled object {foreign[1]}, and only tensors and plain values are read"
        )
    return (
        str(error).strip().split(". ")[0].splitlines()[0]
        if str(error).strip()
        else type(error).__name__
    )


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """As `atomic_write`, and the new name is on disk once the block ends."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer raises RuntimeError, with a position in the file, when a write falls short.
        reason = error if isinstance(error, OSError) else "the disk is full or failing"
        raise CheckpointError(
            f"{path} cannot be written ({reason})",
            remedy="the file before it is untouched: free space or change `output_dir`",
        ) from error


def _duplicate(source: Path, target: Path) -> None:
    """Give a file a second name; copy it if the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with target.open("wb") as file:
            file.write(source.read_bytes())
            file.flush()
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allowing() -> contextlib.AbstractContextManager[object]:
    """Context that allows `_allowed()`; torch before 2.5 lacks it and rejects namespaces."""
    supported = hasattr(torch.serialization, "safe_globals")
    return torch.serialization.safe_globals(_allowed()) if supported else contextlib.nullcontext()


def _allowed() -> list[Any]:
    """Types allowed besides tensors; numpy 1 and 2 name the scalar constructor differently."""
    types = [
        type(np.dtype(scalar)) for scalar in (np.float64, np.float32, np.int64, np.int32, np.bool_)
    ]
    return [argparse.Namespace, np.dtype, *types, *SCALARS]


def _name_scalar(module: str) -> Callable[..., Any]:
    """Numpy's scalar constructor under a module's name, as torch looks it up in a file.

    Since 2.6, torch accepts pairs of object and name; 2.5 reads the name off the object, and later
    releases still do.
    """
    construct = np.float64(0).__reduce__()[0]

    def scalar(*parts: Any) -> Any:
        return construct(*parts)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


SCALARS = [_name_scalar(module) for module in ("numpy.core.multiarray", "numpy._core.multiarray")]
