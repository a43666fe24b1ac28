"""Writes that are whole or not there, bounded reads, and lookup of the shipped presets."""

from __future__ import annotations

import contextlib
import errno
import importlib.resources
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dino.errors import OptionError

MARK = "written by the DINO package; its commands replace it"  # inside a picture, as a comment


def find_preset(name: str) -> Path:
    """Resolve a file name given by the user: the working directory first, then shipped presets.

    "configs/vits16.yaml" and "ops_bf16.txt" resolve from any directory; the user's files win.
    """
    own = Path(os.path.expanduser(name))
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
        raise OSError(f"it has more than {most} bytes")
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

    On success, the output replaces `path`, in one rename; only if both are folders and `path` holds
    something, files replace those of the same names in it. On failure, existing files are left
    untouched.

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
            if draft.is_dir() and path.is_dir() and (path.is_symlink() or any(path.iterdir())):
                for file in draft.glob("*"):
                    os.replace(file, path / file.name)
            else:
                os.replace(draft, path)
    except OSError as error:
        raise OptionError(f"{flag} {path} cannot be written: {error}", value=path) from error


def append_whole(file: io.FileIO, content: bytes) -> None:
    """Append to an unbuffered file, all of it or nothing.

    Raises:
        OSError: It cannot be written, for example because the disk is full.
    """
    end = os.fstat(file.fileno()).st_size
    try:
        if file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise
