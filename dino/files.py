"""Files that are written whole or not at all, and those that come with the package."""

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
    """A file that a user names: in the current folder, else the one of that name that comes with the package.

    So "configs/vits16.yaml" and "ops_bf16.txt" are found from any folder, and one's own come first.
    """
    own = Path(name)
    shipped = Path(str(importlib.resources.files("dino"))) / "presets" / name
    return shipped if not own.exists() and not own.is_absolute() and shipped.is_file() else own


@contextlib.contextmanager
def atomic_write(path: Path, flag: str | None = None, *, alone: bool = False) -> Iterator[Path]:
    """Give a name beside `path` to write to; it takes its place when the block ends well and vanishes when it does not.

    Args:
        path: The file, or a folder that is not there yet.
        flag: Which flag named it, for the error; empty where none did. Without one the system's errors are left alone.
        alone: No other process writes it. The name is then always the same, and what a killed process left is reused.

    Raises:
        OptionError: The file cannot be written, where `flag` is given.
        OSError: The same, where it is not.
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
    """Give a path of the same name elsewhere, to write a file or a folder of files to and to check what was written.

    When the block ends well, what was written takes the place of `path`, or of the files of the same names in it; when
    it does not, what was there before is untouched.

    Args:
        path: The file or folder that the user named.
        flag: Which flag named it, for the error.

    Raises:
        OptionError: It cannot be written.
    """
    try:
        # on the same disk, so that renaming is enough
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            yield draft
            path.mkdir(exist_ok=True) if draft.is_dir() else os.replace(draft, path)
            for file in draft.glob("*"):
                os.replace(file, path / file.name)
    except OSError as error:
        raise OptionError(f"{flag} {path} cannot be written: {error}", value=path) from error
