"""Text files that list images, a name a line, relative to the file's folder or absolute."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dino.data.decode import EXTENSIONS
from dino.errors import DataError


def read_list(path: Path, flag: str) -> tuple[str, ...]:
    """The names that a file lists.

    Raises:
        DataError: It is no text, or lists what is no image; the text names `flag`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{flag} {path} is no text file that lists images: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    wrong = next((name for name in names if not name.lower().endswith(EXTENSIONS)), None)
    if wrong is not None:
        raise DataError(
            f"{flag} {path} lists {wrong!r}, which is no image name (known: {' '.join(EXTENSIONS)})"
        )
    return names


def name_lines(root: Path, names: Sequence[str], folder: Path) -> Iterator[str | None]:
    """Yield the line that stands for each image in a list file of `folder`, or None where no line can.

    That is where the name holds a line break or is no UTF-8, or begins or ends with a blank, which a reader takes away.
    Links in both folders are followed first, since `..` leads out of the folder that a link leads to.

    Args:
        root: Folder that the names are relative to.
        names: Of the images.
        folder: Where the list file will be.
    """
    way = os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
    for name in names:
        line = name if way == os.curdir else os.path.join(way, name)
        yield line if _can_be_read_back(line) else None


def _can_be_read_back(line: str) -> bool:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return line.splitlines() == [line.strip()]
