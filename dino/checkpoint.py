"""The checkpoint file: read, written whole or not at all, and its names.

The keys are those of the original (`student`, `teacher`, `optimizer`, `epoch`, `args`, `dino_loss`, `fp16_scaler`), so
that its evaluation code reads our files; `resume` holds what exact continuation needs besides. Our files hold tensors
and plain values only and open with `torch.load(weights_only=True)`.
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
from dino.plain_pickle.nesting import check_torch_file

LATEST = "checkpoint.pth"
PREVIOUS = "checkpoint_previous.pth"
TEACHER = "teacher_backbone.pth"
FORMAT = 2  # of our own checkpoints; those without the key are of the first
OWN_KEYS = ("resume", "identity")  # of a run's and of a linear probe's checkpoint


def save_file(path: Path, state: Mapping[str, Any] | Tensor) -> None:
    """Write a file whole or not at all: a temporary file beside it, fsync, rename.

    Raises:
        CheckpointError: The folder cannot be written to, or the disk is full; the old file is untouched.
    """
    with _temporary(path) as temporary, temporary.open("wb") as file:
        torch.save(state if isinstance(state, Tensor) else dict(state), file)
        file.flush()
        os.fsync(file.fileno())


def save_latest(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `checkpoint.pth` and keep the one before it as `checkpoint_previous.pth`; one of them is always whole.

    Raises:
        CheckpointError: As `save_file`.
    """
    latest = folder / LATEST
    if latest.exists():
        with _temporary(folder / PREVIOUS) as temporary:
            _duplicate(latest, temporary)
    save_file(latest, state)


def keep_copy(folder: Path, epoch: int, keep: int) -> None:
    """Keep the newest checkpoint as `checkpointNNNN.pth` too (no bytes are copied) and drop the oldest such ones.

    Args:
        folder: The run's output folder.
        epoch: The number N, as in the original.
        keep: How many numbered ones stay; 0 for all.
    """
    with _temporary(folder / f"checkpoint{epoch:04}.pth") as temporary:
        _duplicate(folder / LATEST, temporary)
    numbered = sorted(folder.glob("checkpoint[0-9][0-9][0-9][0-9].pth"))
    for old in numbered[:-keep] if keep else ():
        old.unlink()


def load_latest(folder: Path, *, set_aside: bool) -> tuple[dict[str, Any], Path, list[str]] | None:
    """Read the newest whole checkpoint of a run.

    Args:
        folder: The run's output folder.
        set_aside: Rename damaged files to `*.damaged`, so that the next save does not take them for good ones, and
            remove what a killed process left half-written.

    Returns:
        The state, its file and one line for every newer file that was damaged; None where there is no checkpoint.

    Raises:
        CheckpointError: There are checkpoints and none can be read.
    """
    for stale in folder.glob(".*.pth.*.tmp") if set_aside else ():
        stale.unlink()
    found = [folder / name for name in (LATEST, PREVIOUS) if (folder / name).exists()]
    damaged: list[str] = []
    for path in found:
        try:
            state = load_file(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for newer in found[: len(damaged)] if set_aside else ():
            newer.rename(newer.with_name(f"{newer.name}.damaged"))
        return state, path, damaged
    if damaged:
        raise CheckpointError(
            f"{'; '.join(damaged)}", remedy="remove them to start anew, or use another `output_dir`"
        )
    return None


def read_mode(folder: Path | str) -> str | None:
    """The execution mode of the run whose newest whole checkpoint is here; None where there is none, or it says none.

    Read before the device is there, since a device takes its mode when it is opened.
    """
    for name in (LATEST, PREVIOUS):
        with contextlib.suppress(CheckpointError):
            resume = load_file(Path(folder, name), mapped=True).get("resume")
            return resume.get("mode") if isinstance(resume, Mapping) else None
    return None


def load_file(path: Path | str, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint or weights file into host memory, unpickling nothing but tensors and plain values.

    Beyond torch's own allow-list, `argparse.Namespace` and numpy's numbers may occur: the original saves both.

    Args:
        path: The file.
        mapped: Leave the tensors on disk until they are looked at: quick where only the plain values are wanted.

    Raises:
        CheckpointError: Missing, damaged, foreign, or with anything else pickled in it.
    """
    try:
        with _allowing():
            state = load_tensors(path, mapped=mapped)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except Exception as error:  # noqa: BLE001 - damaged files raise anything, and all of it means the same
        raise CheckpointError(f"{path} is damaged or no checkpoint: {_reason(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__}, wants a dictionary of tensors"
        )
    written = state.get("format")
    if isinstance(written, int) and written > FORMAT and any(key in state for key in OWN_KEYS):
        raise CheckpointError(
            f"{path} has checkpoint format {written}, this version reads up to {FORMAT}",
            remedy="update the package",
        )
    return state


def load_tensors(path: Path | str, *, mapped: bool = False) -> Any:
    """`torch.load` of tensors and plain values into host memory, for files of any origin.

    Args:
        path: The file.
        mapped: Leave the tensors on disk until they are used.

    Raises:
        Exception: Any kind, for files that are damaged or hold more; the process survives.
    """
    check_torch_file(path)
    return torch.load(
        path, map_location="cpu", weights_only=True, **({"mmap": True} if mapped else {})
    )


def read_args(state: Mapping[str, Any]) -> dict[str, Any]:
    """The options a checkpoint was made with, whether it holds a dictionary (ours) or a namespace (the original's)."""
    args = state.get("args")
    return (
        dict(args)
        if isinstance(args, Mapping)
        else vars(args)
        if isinstance(args, argparse.Namespace)
        else {}
    )


def strip_prefixes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without `module.` and `backbone.` in front, in either order, as the original's evaluations strip them.

    Raises:
        CheckpointError: As `join_unique`.
    """
    return join_unique(
        (re.sub(r"^((module|backbone)\.)+", "", name), tensor) for name, tensor in weights.items()
    )


def join_unique(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by their new names.

    Raises:
        CheckpointError: Two have the same one, and nobody can say which is meant.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in named:
        if name in found:
            raise CheckpointError(
                f"the weights file holds {name} twice, under different names",
                remedy="remove one of the two",
            )
        found[name] = tensor
    return found


def add_prefix(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names with `prefix` in front."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def _reason(error: Exception) -> str:
    """The first sentence of torch's text, without its advice to unpickle anything."""
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
    """As `atomic_write`, and the new name is on disk when the block ends."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        raise CheckpointError(
            f"{path} cannot be written ({error})",
            remedy="the file before it is untouched: free space or change `output_dir`",
        ) from error


def _duplicate(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no hard links, copy it."""
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
    """Older torch (that of the last Poplar SDK) cannot be told: there the original's namespaces are foreign."""
    known = hasattr(torch.serialization, "safe_globals")
    return torch.serialization.safe_globals(_allowed()) if known else contextlib.nullcontext()


def _allowed() -> list[Any]:
    """What may be unpickled besides tensors; numpy 1 and 2 name the constructor of a number differently in files."""
    kinds = [
        type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)
    ]
    return [argparse.Namespace, np.dtype, *kinds, *SCALARS]


def _name_scalar(module: str) -> Callable[..., Any]:
    """Numpy's constructor of a number under a module's name, by which torch finds it in a file.

    From 2.6 on torch takes pairs of object and name; 2.5 reads the name off the object, as all later ones do.
    """
    construct = np.float64(0).__reduce__()[0]

    def scalar(*parts: Any) -> Any:
        return construct(*parts)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


SCALARS = [_name_scalar(module) for module in ("numpy.core.multiarray", "numpy._core.multiarray")]
