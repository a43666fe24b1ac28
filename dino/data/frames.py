"""Frames in a folder, in the order of the numbers in their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dino.data.decode import is_picture
from dino.data.listing import is_hidden


def list_pictures(folder: Path) -> list[Path]:
    """List the pictures in a folder in order, without hidden ones such as `._1.png` of macOS."""
    paths = (path for path in folder.iterdir() if is_picture(path.name))
    shown = [path for path in paths if not is_hidden(path.name) and path.is_file()]
    return sorted(shown, key=order_by_numbers)


def order_by_numbers(path: Path) -> tuple[list[Any], str]:
    """Sort key that compares numbers in names by value: frame-9999 comes before frame-10000."""
    parts = re.split(r"([0-9]+)", path.stem)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name
