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
from dino.data.shard_names import find_shards, is_pattern
from dino.data.shards import list_members, read_stamps
from dino.data.splits import ALL, TRAIN, choose_split, label_by_folder, read_split
from dino.errors import DataError

UNUSED = "shards of other splits"


def names_shards(path: Path) -> bool:
    """Whether a path or URL is a pattern of tar files."""
    return isinstance(path, UrlPath) or (is_pattern(str(path)) and not os.path.isdir(path))


def may_hold(pattern: Path, flag: str, split: str) -> bool:
    """Whether a pattern has shards of a split; of a server's, only opening them tells."""
    return isinstance(pattern, UrlPath) or split in map(
        _read_split, map(str, find_shards(str(pattern), flag))
    )


def open_local_shards(paths: Sequence[Path]) -> ImageSource:
    """List the images of tar files on a disk.

    Raises:
        DataError: One of them cannot be used.
    """
    shards = list(map(LocalShard, paths))
    return _open_shards(shards, _find_root(shards))


def _find_root(shards: Sequence[LocalShard]) -> Path:
    return Path(os.path.commonpath([os.path.dirname(shard.place) for shard in shards]))


def open_pattern(pattern: Path, flag: str, split: str, *, labelled: bool) -> ImageSource:
    """List the images of the tar files that a path or URL with braces and wildcards names.

    Args:
        pattern: The path or URL.
        flag: The flag to name in errors.
        split: ALL, or which of the files to open by the splits in their names.
        labelled: Whether files without a split in their names belong to none. Otherwise they are
            for training, if no others are.

    Raises:
        DataError: There is none of this split, or one of them cannot be read, or cannot be used.
    """
    if isinstance(pattern, UrlPath):
        shards: Sequence[Shard] = find_remote_shards(str(pattern), flag)
    else:
        shards = list(map(LocalShard, find_shards(str(pattern), flag)))
    chosen = _choose(shards, pattern, flag, split, labelled=labelled)
    near = [shard for shard in chosen if isinstance(shard, LocalShard)]
    source = _open_shards(chosen, _find_root(near) if near else pattern.parent)
    unused = sorted(set(map(str, shards)) - set(map(str, chosen)))
    passed = {UNUSED: (len(unused), unused[0])} if unused else {}
    return replace(source, passed={**source.passed, **passed})


def _choose(
    shards: Sequence[Shard], pattern: Path, flag: str, split: str, *, labelled: bool
) -> list[Shard]:
    """The shards of a split.

    Raises:
        DataError: There is none.
    """
    splits: dict[str, list[Shard]] = {}
    for shard in shards:
        splits.setdefault(_read_split(str(shard)), []).append(shard)
    if split == ALL or (split == TRAIN and not labelled and TRAIN not in splits):
        return list(shards)
    # Without training images beside them, `test` is the name of anything.
    chosen = choose_split(splits, split) if TRAIN in splits else splits.get(split)
    if chosen:
        return chosen
    raise DataError(
        f"{flag} {pattern} names {len(shards)} shards, and none of the split {split}",
        remedy="name those of both splits, such as {train-{000..146},val-{000..006}}.tar",
    )


def _read_split(name: str) -> str:
    """The split that a shard's name tells, or else its folder's; what is above has other names."""
    return read_split(os.sep.join(name.split(os.sep)[-2:]))


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
