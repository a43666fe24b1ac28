"""The images below a folder, and what else is there and is passed over."""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dino.data.index import Enter, Index, Stamp, pass_by, stamp_of

# Names that systems and programs leave in anybody's folders, in lower case; and hidden ones.
SYSTEM = frozenset(
    {
        *("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"),
        *("#recycle", "#snapshot", "thumbs.db", "ehthumbs.db", "desktop.ini"),
    }
)
HIDDEN, UNNAMED = "hidden or of the system", "without an ending"
BROKEN, STRANGE = "links to nothing", "neither files nor folders"
AGAIN = "reached again through a link"
ENDING = re.compile(r"\.[a-z]\w{0,9}", re.ASCII)
KINDS_SHOWN, LETTERS_SHOWN = 6, 80

Passed = dict[str, tuple[int, str]]  # what it is -> how many, and the first of them


class Folder(NamedTuple):
    """What one folder holds, as stored in an index; names are sorted.

    Attributes:
        files: Its images.
        folders: Its sub-folders.
        links: The links among both, and where they lead.
        passed: What else it holds.
    """

    files: list[str]
    folders: list[str]
    links: dict[str, str]
    passed: Mapping[str, Any]


class Listing(NamedTuple):
    """The images below a folder.

    Attributes:
        names: Relative to the folder; a folder's own images come before those of its sub-folders.
        passed: What is passed over.
        stamps: The stamps of all folders, and of a list file, by path.
    """

    names: tuple[str, ...]
    passed: Passed
    stamps: Mapping[str, Stamp]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's images."""
    return name.startswith(".") and name != ".." or name.lower() in SYSTEM


def kind_of(name: str) -> str:
    """What to call a file that is no image: by its ending."""
    ending = os.path.splitext(name)[1].lower()
    return ending if ENDING.fullmatch(ending) else UNNAMED


def add(passed: Passed, kind: str, name: str, count: int = 1) -> None:
    """Count files or folders that are passed over; `name` is one of them."""
    before, first = passed.get(kind, (0, name))
    passed[kind] = before + count, first


def describe(passed: Passed) -> str:
    """Say what was passed over: numbers, kinds and examples, the most frequent first."""
    kinds = sorted(passed.items(), key=lambda item: -item[1][0])
    parts = [f"{count} {kind} ({show(first)})" for kind, (count, first) in kinds[:KINDS_SHOWN]]
    rest = sum(count for _, (count, _) in kinds[KINDS_SHOWN:])
    return ", ".join(parts + [f"{rest} others"] * bool(rest))


def show(name: str) -> str:
    """A name that a terminal can show in one line."""
    short = name if len(name) <= LETTERS_SHOWN else f"{name[: LETTERS_SHOWN - 3]}..."
    return short if short.isprintable() else ascii(short)


def list_folder(
    root: str | os.PathLike[str], endings: tuple[str, ...], enter: Enter = pass_by
) -> Listing:
    """List all images below `root`. Links are followed, but nothing is listed twice.

    Args:
        root: The folder.
        endings: Extensions in lower case, with the dot; matched in either case.
        enter: As of an index.

    Raises:
        OSError: A folder cannot be read.
    """
    top = os.path.abspath(root)
    with Index("folder", f"{top}\n{' '.join(endings)}", is_folder, enter=enter) as index:
        found = _visit(top, endings, index)
    names, passed = _put_in_order(top, found)
    stamps = {os.path.join(top, folder): stamp for folder, stamp in index.stamps().items()}
    return Listing(names, passed, stamps)


def _visit(root: str, endings: tuple[str, ...], index: Index) -> dict[str, Folder]:
    """Look into every folder once; linked ones last, so that a folder keeps its own name."""
    found: dict[str, Folder] = {}
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        path = os.path.join(root, folder)
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        known = index.look_up(folder, stamp_of(status))
        found[folder] = here = Folder(*known) if known else look_into(path, endings)
        if not known:
            index.store(folder, stamp_of(status), here, len(here.files) + len(here.folders))
        below = {name: os.path.join(folder, name) for name in here.folders}
        links += [path for name, path in below.items() if name in here.links]
        folders += [path for name, path in reversed(below.items()) if name not in here.links]
    return found


def look_into(path: str, endings: tuple[str, ...]) -> Folder:
    """List one folder.

    Raises:
        OSError: It cannot be read.
    """
    files, folders, links, passed = list[str](), list[str](), dict[str, str](), Passed()
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            kind = _kind(entry, endings)
            if kind is not None:
                add(passed, kind, entry.name)
                continue
            (folders if entry.is_dir() else files).append(entry.name)
            if entry.is_symlink():
                links[entry.name] = os.readlink(entry.path)
    return Folder(files, folders, links, passed)


def _kind(entry: os.DirEntry[str], endings: tuple[str, ...]) -> str | None:
    """What to call an entry that is passed over; None for images and folders."""
    if is_hidden(entry.name):
        return HIDDEN
    try:
        if entry.is_dir():
            return None
        is_file = entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        is_file = False
    if not is_file:
        return STRANGE if os.path.exists(entry.path) else BROKEN
    return None if entry.name.lower().endswith(endings) else kind_of(entry.name)


def is_folder(record: Any) -> bool:
    """Whether a stored record is a `Folder`, and names nothing outside of it."""
    if not isinstance(record, list) or len(record) != len(Folder._fields):
        return False
    files, folders, links, passed = record
    return (
        isinstance(files, list)
        and isinstance(folders, list)
        and all(isinstance(name, str) and _is_plain(name) for name in (*files, *folders))
        and isinstance(links, dict)
        and all(isinstance(target, str) for target in links.values())
        and is_passed(passed)
    )


def is_passed(record: Any) -> bool:
    """Whether a stored record has the form of `Passed`."""
    return isinstance(record, dict) and all(
        isinstance(counted, list) and [type(value) for value in counted] == [int, str]
        for counted in record.values()
    )


def _is_plain(name: str) -> bool:
    return "/" not in name and "\0" not in name and name not in ("", ".", "..")


def _put_in_order(root: str, found: Mapping[str, Folder]) -> tuple[tuple[str, ...], Passed]:
    names: list[str] = []
    passed: Passed = {}
    is_new = _reach_once(root, found)
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        if folder not in found:
            add(passed, AGAIN, folder)
            continue
        here = found[folder]
        for kind, (count, first) in here.passed.items():
            add(passed, kind, os.path.join(folder, first), count)
        for name in here.files:
            path = os.path.join(folder, name)
            if name not in here.links or is_new(folder, here.links[name]):
                names.append(path)
            else:
                add(passed, AGAIN, path)
        waiting += [os.path.join(folder, name) for name in reversed(here.folders)]
    return tuple(names), passed


def _reach_once(root: str, found: Mapping[str, Folder]) -> Callable[[str, str], bool]:
    """Return a function that says whether a linked image is listed nowhere else."""
    real = functools.cache(os.path.realpath)
    taken: set[str] = set()
    if any(here.links for here in found.values()):
        taken.update(
            os.path.join(real(os.path.join(root, folder)), name)
            for folder, here in found.items()
            for name in here.files
        )

    def is_new(folder: str, target: str) -> bool:
        above, name = os.path.split(os.path.join(real(os.path.join(root, folder)), target))
        place = os.path.join(real(above), name)
        first = place not in taken
        taken.add(place)
        return first

    return is_new
