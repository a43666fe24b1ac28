"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dino.errors import OptionError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; it takes its place when the block ends well and vanishes when it does not.

    Raises:
        OSError: It cannot take its place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # another process may be writing the same file
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing_whole(path: Path, flag: str = "") -> Iterator[Path]:
    """As `replacing`, for a file that the user named.

    Args:
        path: The file.
        flag: Which flag named it, for the error.

    Raises:
        OptionError: The file cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise OptionError(f"{flag} {path} cannot be written: {error}".lstrip()) from error
