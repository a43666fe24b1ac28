"""Atomic file writes, bounded reads, and lookup of the presets shipped with the package."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dino.errors import OptionError


def find_preset(name: str) -> Path:
    """Resolve a file name given by the user: the working directory first, then shipped presets.

    "configs/vits16.yaml" and "ops_bf16.txt" resolve from any directory; the user's files win.
    """
    own = Path(name)
    shipped = Path(str(importlib.resources.files("dino"))) / "presets" / name
    return shipped if not own.exists() and not own.is_absolute() and shipped.is_file() else own


def read_bounded(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: The file is missing, larger, or a pipe or device, which may have no end.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it is larger than {most >> 20} MiB")
    return content


@contextlib.contextmanager
def atomic_write(path: Path, flag: str | None = None, *, alone: bool = False) -> Iterator[Path]:
    """Yield a temporary name next to `path`; rename it to `path` on success, else delete it.

    Args:
        path: The file, or a folder that does not exist yet.
        flag: The flag to name in the error; may be empty. With None, OSErrors pass through.
        alone: No other process writes this path. The temporary name is then fixed, and whatever a
            killed process left there is reused.

    Raises:
        OptionError: The file cannot be written and `flag` is not None.
        OSError: The file cannot be written and `flag` is None.
    """
    temporary = path.with_name(
        f"{path.name}.partial" if alone else f".{path.name}.{os.getpid()}.tmp"
    )
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if flag is None:
            raise
        raise OptionError(
            f"{flag} {path} cannot be written: {error}".lstrip(), value=path
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def atomic_draft(path: Path, flag: str) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, for writing and then checking output.

    On success, the output replaces `path`; a folder's files replace those of the same names in
    `path`. On failure, existing files are left untouched.

    Args:
        path: The file or folder named by the user.
        flag: The flag to name in the error.

    Raises:
        OptionError: The output cannot be written.
    """
    try:
        # On the same disk, so that a rename suffices.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            yield draft
            path.mkdir(exist_ok=True) if draft.is_dir() else os.replace(draft, path)
            for file in draft.glob("*"):
                os.replace(file, path / file.name)
    except OSError as error:
        raise OptionError(f"{flag} {path} cannot be written: {error}", value=path) from error
