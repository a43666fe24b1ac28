"""Copydays (Douze et al., 2009): originals, and blocks of edited copies of them, each a folder of one kind of edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dino.data.image_source import ImageSource
from dino.data.sources import list_images
from dino.errors import DataError

ORIGINAL, STRONG = "original", "strong"
FAMILIES = (
    "jpegqual",
    "crops",
)  # folders of blocks, one for each JPEG quality or share of the area
PREFIX = 4  # characters of a file name that tell which original it is: 200002.jpg is a copy of 200000.jpg
LAYOUT = "Copydays has the folders original and strong, and may have jpegqual/* and crops/*"


class Block(NamedTuple):
    """Queries of one kind of edit, and for each of them the indices of its originals."""

    name: str
    positives: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Copydays:
    """All blocks' images one block after another, the originals first, and the blocks in the same order."""

    source: ImageSource
    blocks: tuple[Block, ...]


def open_copydays(data_path: str | None) -> Copydays:
    """List what there is of the set.

    Raises:
        DataError: No such folder, `original` or `strong` is missing, a block is empty, or a copy has no original.
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
    found = {name: list_images(root / name, "`data_path`").names for name in names}
    return Copydays(
        source=ImageSource(
            root=root,
            names=tuple(f"{name}/{file}" for name, files in found.items() for file in files),
        ),
        blocks=tuple(
            Block(name, _match(root / name, files, found[ORIGINAL]))
            for name, files in found.items()
        ),
    )


def _list_blocks(root: Path, family: str) -> list[str]:
    """Blocks of a family by their number, as the original lists them; others after them, by name."""
    names = [folder.name for folder in (root / family).glob("*") if folder.is_dir()]
    return [
        f"{family}/{name}"
        for name in sorted(names, key=lambda name: (not name.isdigit(), len(name), name))
    ]


def _match(
    block: Path, copies: Sequence[str], originals: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """The originals of each copy: those with its prefix; else, but for strong copies, the one at its place."""
    owners: dict[str, list[int]] = {}
    for index, name in enumerate(originals):
        owners.setdefault(Path(name).name[:PREFIX], []).append(index)
    positives = tuple(tuple(owners.get(Path(name).name[:PREFIX], ())) for name in copies)
    if block.name == STRONG or all(len(found) == 1 for found in positives):
        lost = next(
            (name for name, found in zip(copies, positives, strict=True) if not found), None
        )
        if lost is not None:
            raise DataError(
                f"{block / lost}: no original's name begins with its first {PREFIX} characters"
            )
        return positives
    if len(copies) != len(originals):
        raise DataError(
            f"{block} holds {len(copies)} images for {len(originals)} originals, and the first {PREFIX} characters of "
            "their names do not tell which belongs to which"
        )
    return tuple((place,) for place in range(len(copies)))
