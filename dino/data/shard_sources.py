"""Tar shards, on a disk or behind URLs, as one list of images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dino.data.decode import EXTENSIONS
from dino.data.image_source import ImageSource, number_classes
from dino.data.index import Enter, Stamp
from dino.data.kept import list_once
from dino.data.remote import UrlPath, find_remote_shards
from dino.data.shard_files import LocalShard, Shard
from dino.data.shards import list_members, read_stamps
from dino.data.splits import label_by_folder


def open_local_shards(paths: Sequence[Path]) -> ImageSource:
    """List the images of tar files on a disk.

    Raises:
        DataError: One of them cannot be used.
    """
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return _open_shards([LocalShard(path) for path in paths], root)


def open_remote_shards(pattern: UrlPath, flag: str) -> ImageSource:
    """List the images of tar files behind a URL with braces and wildcards.

    Args:
        pattern: The URL.
        flag: The flag to name in errors.

    Raises:
        DataError: One of them cannot be read, or cannot be used.
    """
    return _open_shards(find_remote_shards(str(pattern), flag), pattern.parent)


def _open_shards(shards: Sequence[Shard], root: Path) -> ImageSource:
    """Classes are the folders in the members' names, or the numbers of .cls members if any."""
    stamps = read_stamps(shards)
    places = [shard.place for shard in shards]
    now = dict(zip(places, stamps, strict=True))
    source = list_once(
        "shards",
        root,
        (*places, str(shards[0]), *EXTENSIONS),
        lambda enter: _list_shards(shards, stamps, enter, root),
        now.__getitem__,
    )
    assert source.members is not None
    members = replace(source.members, shards=tuple(zip(shards, stamps, strict=True)))
    return replace(source, members=members)


def _list_shards(
    shards: Sequence[Shard], stamps: Sequence[Stamp], enter: Enter, root: Path
) -> tuple[ImageSource, Mapping[str, Stamp]]:
    images, members, passed, lasting = list_members(shards, stamps, enter)
    names = tuple(image.name for image in images)
    labels, classes = label_by_folder(names)
    numbers = tuple(image.label for image in images if image.label is not None)
    if len(numbers) == len(names) and numbers != labels:
        labels, classes = numbers, number_classes(numbers)
    source = ImageSource(
        root=root,
        names=names,
        labels=labels,
        classes=classes,
        members=members,
        origin=f"{len(shards)} shards, the first {shards[0]}",
        passed=passed,
    )
    return source, lasting
