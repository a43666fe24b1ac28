"""A folder, or a text file that lists images, as one list of images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dino.data.decode import EXTENSIONS
from dino.data.demo import is_demo
from dino.data.image_list import read_list
from dino.data.image_source import ImageSource
from dino.data.index import Enter, Stamp
from dino.data.kept import list_once
from dino.data.listing import list_folder
from dino.data.splits import label_by_folder
from dino.errors import DataError


def list_files(root: Path, flag: str) -> ImageSource:
    """The images below a folder, or of a text file that lists them; there may be none.

    Raises:
        DataError: It cannot be read, or the list is wrong; the text names `flag`.
    """
    kind, list_them = ("list", _read_list) if os.path.isfile(root) else ("folder", _list_folder)
    place = (os.path.abspath(root), str(root), *EXTENSIONS)
    folder = root.parent if kind == "list" else root
    return list_once(kind, folder, place, lambda enter: list_them(root, flag, enter))


def _read_list(root: Path, flag: str, enter: Enter) -> tuple[ImageSource, Mapping[str, Stamp]]:
    names, _, stamps = read_list(root, flag, enter)
    again = len(names) - len(set(names))
    origin = f"list {root}" + f" ({again} of its lines repeat images)" * bool(again)
    return ImageSource(root=root.parent, names=names, origin=origin), stamps


def _list_folder(root: Path, flag: str, enter: Enter) -> tuple[ImageSource, Mapping[str, Stamp]]:
    try:
        names, passed, stamps = list_folder(root, EXTENSIONS, enter)
    except OSError as error:
        raise DataError(f"{flag} {root} cannot be read: {error}") from error
    labels, classes = label_by_folder(names)
    origin = f"{'built-in images' if is_demo(root) else 'folder'} {root}"
    source = ImageSource(
        root=root, names=names, labels=labels, classes=classes, origin=origin, passed=passed
    )
    return source, stamps
