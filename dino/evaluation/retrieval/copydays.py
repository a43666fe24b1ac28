"""Copydays (Douze et al., 2009): originals, and one folder (block) of copies per kind of edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dino.data.image_source import ImageSource
from dino.data.listing import is_hidden
from dino.data.sources import list_images
from dino.errors import DataError

ORIGINAL, STRONG = "original", "strong"
FAMILIES = ("jpegqual", "crops")  # folders of blocks, one per JPEG quality or share of the area
PREFIX = 4  # first characters of a file name identify its original: 200002.jpg copies 200000.jpg
LAYOUT = "Copydays has the folders original and strong, and may have jpegqual/* and crops/*"


class Block(NamedTuple):
    """Queries of one kind of edit, and the indices of each query's originals."""

    name: str
    positives: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Copydays:
    """The images of all blocks, block by block with the originals first, and the blocks."""

    source: ImageSource
    blocks: tuple[Block, ...]


def open_copydays(data_path: str | None) -> Copydays:
    """List the images of the data set.

    Raises:
        DataError: The folder, `original` or `strong` is missing, a block is empty, or a copy has no
            original.
    """
    if not data_path:
        raise DataError(f"`data_path` is missing: {LAYOUT}")
    root = Path(data_path)
    missing = [name for name in (ORIGINAL, STRONG) if not (root / name).is_dir()]
    if missing:
        raise DataError(
            f"`data_path` {root} has no folder {' and no '.join(missing)}: {LAYOUT}", value=root
        )
    names = [
        ORIGINAL,
        STRONG,
        *(name for family in FAMILIES for name in _list_blocks(root, family)),
    ]
    files = {name: list_images(root / name, "`data_path`").names for name in names}
    return Copydays(
        source=ImageSource(
            root=root,
            names=tuple(f"{name}/{file}" for name in names for file in files[name]),
        ),
        blocks=tuple(
            Block(name, _match(root / name, files[name], files[ORIGINAL])) for name in names
        ),
    )


def _list_blocks(root: Path, family: str) -> list[str]:
    """List the blocks of a family by number, as in the original, and then other names."""
    folders = (folder for folder in (root / family).glob("*") if folder.is_dir())
    names = [folder.name for folder in folders if not is_hidden(folder.name)]
    return [
        f"{family}/{name}"
        for name in sorted(names, key=lambda name: (not name.isdigit(), len(name), name))
    ]


def _match(
    block: Path, copies: Sequence[str], originals: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Match each copy to the originals with its prefix, or, unless strong, the one at its index."""
    owners: dict[str, list[int]] = {}
    for index, name in enumerate(originals):
        owners.setdefault(Path(name).name[:PREFIX], []).append(index)
    positives = tuple(tuple(owners.get(Path(name).name[:PREFIX], ())) for name in copies)
    if block.name == STRONG or all(len(matches) == 1 for matches in positives):
        lost = next(
            (name for name, matches in zip(copies, positives, strict=True) if not matches), None
        )
        if lost is not None:
            raise DataError(
                f"{block / lost}: no original's name begins with its first {PREFIX} characters"
            )
        return positives
    if len(copies) != len(originals):
        raise DataError(
            f"{block} holds {len(copies)} images for {len(originals)} originals, and the first "
            f"{PREFIX} characters of their names do not match one to one"
        )
    return tuple((index,) for index in range(len(copies)))
