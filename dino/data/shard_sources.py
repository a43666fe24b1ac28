"""Tar shards, on a disk or behind URLs, as one list of images."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dino.data.decode import EXTENSIONS
from dino.data.image_source import ImageSource, number_classes
from dino.data.index import Enter, Stamp
from dino.data.kept import list_once
from dino.data.remote import UrlPath, find_remote_shards
from dino.data.shard_files import LocalShard, Shard
from dino.data.shard_names import find_shards
from dino.data.shards import list_members, read_stamps
from dino.data.splits import ALL, TEST, TRAIN, VALIDATION, choose_split, label_by_folder, read_split
from dino.errors import DataError

UNUSED = "shards of other splits"
HOST = re.compile(r"^[^/]+://[^/]*")


def holds_validation(pattern: Path, flag: str) -> bool:
    """Whether a pattern names shards of both splits; of a server's, only opening them tells.

    Raises:
        DataError: A shard is missing.
    """
    if isinstance(pattern, UrlPath):
        return True
    return bool(choose_split(divide_shards(_find_shards(pattern, flag)), VALIDATION))


def open_local_shards(paths: Sequence[Path]) -> ImageSource:
    """List the images of tar files on a disk.

    Raises:
        DataError: One of them cannot be used.
    """
    shards = list(map(LocalShard, paths))
    return _open_shards(shards, _find_root(shards))


def _find_shards(pattern: Path, flag: str) -> Sequence[Shard]:
    if isinstance(pattern, UrlPath):
        return find_remote_shards(str(pattern), flag)
    return list(map(LocalShard, find_shards(str(pattern), flag)))


def _find_root(shards: Sequence[Shard]) -> Path:
    """The folder of shards on a disk."""
    return Path(os.path.commonpath([os.path.dirname(shard.place) for shard in shards]))


def open_pattern(pattern: Path, flag: str, split: str, *, labelled: bool) -> ImageSource:
    """List the images of the tar files that a path or URL with braces and wildcards names.

    Args:
        pattern: The path or URL.
        flag: The flag to name in errors.
        split: ALL, or which of the files to open, as `divide_shards` tells them.
        labelled: Whether TRAIN means shards that are said to be for training; otherwise it means
            all that are not said to be for something else.

    Raises:
        DataError: The shards are not of several splits, or one of them cannot be used.
    """
    shards = _find_shards(pattern, flag)
    chosen = _choose(shards, split, labelled=labelled)
    if not chosen:
        raise DataError(
            f"{flag} {pattern} names shards of one split, or their names do not tell them apart",
            remedy="name those of both, such as {train-{000..146},val-{000..006}}.tar",
        )
    root = pattern.parent if isinstance(pattern, UrlPath) else _find_root(chosen)
    source = _open_shards(chosen, root)
    unused = sorted(set(map(str, shards)) - set(map(str, chosen)))
    passed = {UNUSED: (len(unused), unused[0])} if unused else {}
    return replace(source, passed={**source.passed, **passed})


def divide_shards(shards: Sequence[Shard]) -> dict[str, list[Shard]]:
    """Shards by split; all are of ALL unless some are for training and others are not.

    The words in the names of the files tell it, or else those in the names of their folders. One
    word alone, such as `test` in the name of a folder, means nothing.
    """
    for part in (-1, -2):
        splits: dict[str, list[Shard]] = {}
        for shard in shards:
            parts = HOST.sub("", shard.place).split("/")
            splits.setdefault(read_split("".join(parts[part:][:1])), []).append(shard)
        if TRAIN in splits and choose_split(splits, VALIDATION):
            return splits
    return {ALL: list(shards)}


def _choose(shards: Sequence[Shard], split: str, *, labelled: bool) -> list[Shard]:
    splits = divide_shards(shards)
    if split == TRAIN and not labelled:
        others = {*splits.get(VALIDATION, []), *splits.get(TEST, [])}
        return [shard for shard in shards if shard not in others]
    return list(shards) if split == ALL else choose_split(splits, split)


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
