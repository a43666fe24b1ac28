"""Text files that list images: one name per line, absolute or relative to the file's folder."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dino.data.columns import is_large
from dino.data.decode import EXTENSIONS
from dino.data.index import NO_STAMP, Enter, Stamp, lasting, pass_by, read_stamp
from dino.data.listing import LETTERS_SHOWN, Listing
from dino.errors import DataError

LONGEST = 4096  # letters of a line; systems do not open longer paths


def read_list(path: Path, flag: str, enter: Enter = pass_by) -> Listing:
    """Read the image names that a text file lists; `enter` is called before many are checked.

    Raises:
        DataError: It is not text, lists a name that is not an image, or a file that is missing; the
            text names `flag`.
    """
    try:
        stamp = lasting(read_stamp(path))
        lines = dict(_read_lines(path, flag))
    except (OSError, UnicodeError) as error:
        raise DataError(f"{flag} {path} is not a text file that lists images: {error}") from error
    wrong = next((name for name in lines.values() if not name.lower().endswith(EXTENSIONS)), None)
    if wrong is not None:
        raise DataError(
            f"{flag} {path} lists {wrong[:LETTERS_SHOWN]!r}, which is not an image name"
            f" (known: {' '.join(EXTENSIONS)})"
        )
    if is_large(len(lines)):
        enter()
    return Listing(tuple(lines.values()), {}, {str(path): stamp, **_check_files(path, lines, flag)})


def _read_lines(path: Path, flag: str) -> Iterator[tuple[int, str]]:
    """Yield the number of each line that is not blank, and what it says."""
    with path.open("rb") as file:
        start = file.read(2)
    # Editors of Windows begin a file with the mark of its encoding.
    is_wide = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    with path.open(encoding="utf-16" if is_wide else "utf-8-sig") as text:
        for number, line in enumerate(iter(lambda: text.readline(LONGEST + 1), ""), 1):
            if len(line) > LONGEST:
                raise DataError(f"{flag} {path} line {number} has more than {LONGEST} letters")
            if line.strip():
                yield number, line.strip()


def _check_files(path: Path, lines: Mapping[int, str], flag: str) -> dict[str, Stamp]:
    """Check that every line names a file; return the stamps of their folders."""
    missing, stamps = find_missing(path.parent, lines)
    if missing:
        first = lines[missing[0]]
        raise DataError(
            f"{flag} {path}: {len(missing)} of {len(lines)} listed images do not exist, the first"
            f" is {first[:LETTERS_SHOWN]!r} in line {missing[0]}",
            remedy=_explain(path.parent, first),
        )
    return stamps


def _stamp(folder: Path) -> Stamp:
    try:
        return lasting(read_stamp(folder))
    except (OSError, ValueError):
        return NO_STAMP


def find_missing(root: Path, names: Mapping[int, str]) -> tuple[list[int], dict[str, Stamp]]:
    """The numbers of names below `root` that name no file, by looking once into each folder.

    Returns:
        The numbers, and the folders' stamps.
    """
    known: dict[str, set[str]] = {}
    stamps: dict[str, Stamp] = {}
    missing = []
    for number, name in names.items():
        folder, base = os.path.split(name)
        if folder not in known:
            stamps[str(root / folder)] = _stamp(root / folder)
            known[folder] = _list_files(root / folder)
        if base not in known[folder] and not _is_file(root / name):
            missing.append(number)
    return missing, stamps


def _list_files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):
        return set()


def _is_file(path: Path) -> bool:
    """Whether a path names a file, such as one that its folder does not list."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _explain(folder: Path, name: str) -> str:
    if "://" in name:
        return "download it: a list names files"
    if name.startswith("~"):
        return "write out the home folder"
    if "\\" in name:
        return "write / between folders"
    if _is_file(Path(name)):
        return f"names are relative to the folder of the list, {folder}"
    return f"names are absolute, or relative to {folder}"


def name_lines(root: Path, names: Sequence[str], folder: Path) -> Iterator[str | None]:
    """Yield each image's line in a list file located in `folder`, or None if no line can name it.

    A line cannot name a file whose name contains a line break, is not valid UTF-8, or begins or
    ends with whitespace, which readers strip. Links in both folders are resolved first, because
    `..` leads out of a link's target.

    Args:
        root: Folder that the names are relative to.
        names: Names of the images.
        folder: Where the list file will be.
    """
    prefix = os.path.relpath(os.path.realpath(root), os.path.realpath(folder))
    for name in names:
        line = name if prefix == os.curdir else os.path.join(prefix, name)
        yield line if _can_be_read_back(line) else None


def _can_be_read_back(line: str) -> bool:
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return line.splitlines() == [line.strip()]
