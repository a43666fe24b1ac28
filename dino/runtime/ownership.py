"""Which files of an output folder this package wrote: it replaces no others.

A recipe of ours begins with a certain line, and a picture holds a mark. A file without it is the
user's, whatever its name.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path

from dino.config import RECIPE, RECIPE_MARK
from dino.errors import OptionError
from dino.files import MARK, atomic_write


def check_own(paths: Iterable[Path], setting: str = "output_dir") -> None:
    """Check that the pictures that a command will replace are of this package.

    Args:
        paths: Files that may exist.
        setting: The setting that names their folder.

    Raises:
        OptionError: One is not.
    """
    for path in paths:
        if path.is_file() and not _holds_mark(path):
            raise foreign(path, setting=setting)


def check_recipe(folder: Path) -> None:
    """Check that an output folder has no recipe.yaml but one of ours.

    Raises:
        OptionError: It has another one.
    """
    path = folder / RECIPE
    if path.exists() and not (
        path.is_file() and path.read_bytes().startswith(RECIPE_MARK.encode())
    ):
        raise foreign(path)


def write_recipe(folder: Path, text: str) -> None:
    """Write a run's settings next to its checkpoint.

    Raises:
        OptionError: The file is not ours, or cannot be written.
    """
    check_recipe(folder)
    with atomic_write(folder / RECIPE, "`output_dir`") as temporary:
        temporary.write_text(text, encoding="utf-8")


def foreign(
    path: Path, why: str = "was not written by this command", *, setting: str = "output_dir"
) -> OptionError:
    """The error for a file that would be replaced."""
    return OptionError(
        f"{path} {why} and would be replaced",
        value=path,
        remedy=f"move it away, or name another `{setting}`",
    )


def _holds_mark(path: Path) -> bool:
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(MARK.encode()) >= 0
