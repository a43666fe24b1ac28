"""Text files that list images: one name per line, absolute or relative to the file's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dino.data.decode import EXTENSIONS
from dino.errors import DataError


def read_list(path: Path, flag: str) -> tuple[str, ...]:
    """Read the image names that a text file lists.

    Raises:
        DataError: It is not text, or lists a name that is not an image; the text names `flag`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{flag} {path} is not a text file that lists images: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    wrong = next((name for name in names if not name.lower().endswith(EXTENSIONS)), None)
    if wrong is not None:
        raise DataError(
            f"{flag} {path} lists {wrong!r}, which is not an image name"
            f" (known: {' '.join(EXTENSIONS)})"
        )
    return names


def name_lines(root: Path, names: Sequence[str], folder: Path) -> Iterator[str | None]:
    """Yield each image's line in a list file located in `folder`, or None if no line can name it.

    A line cannot name a file whose name contains a line break, is not valid UTF-8, or begins or
    ends with whitespace, which readers strip. Links in both folders are resolved first, because
    `..` leads out of a link's target.

    Args:
        root: Folder that the names are relative to.
        names: Names of the images.
        folder: Where the list file will be.
    """
    prefix = os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
    for name in names:
        line = name if prefix == os.curdir else os.path.join(prefix, name)
        yield line if _can_be_read_back(line) else None


def _can_be_read_back(line: str) -> bool:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return line.splitlines() == [line.strip()]
