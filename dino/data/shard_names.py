"""Names of tar shards: braces and wildcards that stand for many of them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from dino.errors import DataError

ENDING = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MOST_SHARDS, MOST_GROUPS = 1_000_000, 20  # of a pattern
RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def is_pattern(path: str) -> bool:
    """Whether a path denotes tar shards; an existing path of another kind does not."""
    return path.endswith((ENDING, *PACKED)) or (ENDING in path and not os.path.exists(path))


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..012}` and `{one,two}`, also inside each other, as a shell does.

    The last group varies fastest.

    Raises:
        DataError: A range is descending, braces have any other form, or name too many shards.
    """
    if pattern.count("{") > MOST_GROUPS:
        raise _too_many(pattern)
    return _expand(pattern, pattern)


def _expand(text: str, pattern: str) -> list[str]:
    """As `expand_braces`, of a part of a pattern."""
    head, opened, inside = text.partition("{")
    if "}" in head:
        raise _wrong(pattern)
    if not opened:
        return [text]
    words, rest = _split_group(inside, pattern)
    choices: list[str] = []
    for word in words:
        choices += _expand(word, pattern) if len(words) > 1 else _count(word, pattern)
        if len(choices) > MOST_SHARDS:
            raise _too_many(pattern)
    tails = _expand(rest, pattern)
    if len(choices) * len(tails) > MOST_SHARDS:
        raise _too_many(pattern)
    return [f"{head}{choice}{tail}" for choice in choices for tail in tails]


def _split_group(text: str, pattern: str) -> tuple[list[str], str]:
    """The words of the group that `text` is in, and what follows it."""
    words, begin, depth = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth < 0 or (letter == "," and depth == 0):
            words.append(text[begin:place])
            begin = place + 1
        if depth < 0:
            return words, text[begin:]
    raise _wrong(pattern)


def _count(text: str, pattern: str) -> list[str]:
    """The numbers of a range."""
    group = RANGE.fullmatch(text)
    if group is None:
        raise _wrong(pattern)
    first, last = group.groups()
    if int(first) > int(last):
        raise DataError(
            f"{pattern}: {{{first}..{last}}} is descending", remedy=f"write {{{last}..{first}}}"
        )
    if int(last) - int(first) >= MOST_SHARDS:
        raise _too_many(pattern)
    padded = any(len(end) > 1 and end[0] == "0" for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]


def _wrong(pattern: str) -> DataError:
    return DataError(
        f"{pattern:.100}: braces must hold a range ({{000..012}}) or a list ({{one,two}})"
    )


def _too_many(pattern: str) -> DataError:
    return DataError(f"{pattern:.100} names more than {MOST_SHARDS} shards")


def find_shards(pattern: str, flag: str) -> tuple[Path, ...]:
    """List the tar files that braces and wildcards name, in order; each wildcard's are sorted.

    Raises:
        DataError: A shard is missing, named twice or compressed, or a wildcard matches nothing.
    """
    names = [pattern] if os.path.exists(pattern) else expand_braces(pattern)
    wild = [name for name in names if not os.path.exists(name) and glob.has_magic(name)]
    matches = {name: sorted(glob.glob(name)) for name in wild}
    paths = [path for name in names for path in matches.get(name, [name])]
    missing = [name for name in names if not matches.get(name, os.path.exists(name))]
    if missing:
        raise DataError(
            f"{flag} {pattern}: {len(missing)} of {len(names)} shards are missing,"
            f" the first is {missing[0]}"
        )
    check_names(paths, pattern, flag)
    return tuple(map(Path, paths))


def check_names(paths: Sequence[str], pattern: str, flag: str) -> None:
    """Check the names that a pattern stands for.

    Raises:
        DataError: A shard is named twice or compressed.
    """
    in_order = sorted(paths)
    repeated = next((a for a, b in zip(in_order, in_order[1:], strict=False) if a == b), None)
    if repeated:
        raise DataError(f"{flag} {pattern} names the shard {repeated} twice")
    odd = next((path for path in paths if not path.endswith(ENDING)), None)
    if odd:
        raise DataError(
            f"{flag} {pattern}: {odd} is not an uncompressed {ENDING} file",
            remedy="decompress it, because compressed files cannot be read by offset",
        )
