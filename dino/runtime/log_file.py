"""Files to which a run adds lines, such as log.txt: one JSON line per epoch.

They may also hold lines of others: the console may be redirected into log.txt, and users keep notes
there. So they are appended to and edited in place: other processes that have one open keep the same
file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dino.errors import OptionError
from dino.files import append_whole, atomic_write

LINE = re.compile(rb"[^\n]*\n|[^\n]+")
START = b'{"train_'  # of a line of ours, of which a crash may have left only a part
MOST_EPOCHS = 10**9
REMEDY = "move it away, or name another `output_dir`"


def epoch_of(line: bytes) -> float:
    """The epoch of a line of log.txt, infinity for one that a crash cut short, NaN for others."""
    values = read_line(line)
    if values is not None:
        return float(values["epoch"])
    return math.inf if line.startswith(START) and not line.endswith((b"}", b"\n")) else math.nan


def open_log(path: Path, first: int | None, number_of: Callable[[bytes], float] = epoch_of) -> None:
    """Check that a file can be added to, and take back what the run will write again.

    Args:
        path: The file; created if missing.
        first: Where a run resumes: its lines from this number on are removed, in place. Lines that
            are not a run's stay as they are. None removes nothing.
        number_of: A line's number: infinity for one that a crash cut short, NaN for one that is not
            a run's.

    Raises:
        OptionError: It is not a file, or cannot be written to.
    """
    if path.exists() and not path.is_file():
        raise OptionError(f"{path} is not a file", remedy=REMEDY)
    try:
        path.open("ab").close()
        _append_redirects(path)
        _finish_edit(path)
        if first is not None:
            _take_back(path, first, number_of)
    except OSError as error:
        raise OptionError(
            f"{path} cannot be written to ({error.strerror})", remedy=REMEDY
        ) from error


def append_line(path: Path, line: str, *, flush: bool = True) -> None:
    """Append a line, whole or not at all, and flush it to disk.

    Without `flush` it survives the process, but not the machine.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("a+b", buffering=0) as file:
        glued = file.seek(0, os.SEEK_END) and not _ends_with_newline(path)
        append_whole(file, b"\n" * glued + line.encode() + b"\n")
        if flush:
            os.fsync(file.fileno())


def write_json(values: Mapping[str, Any]) -> str:
    """Write values as one line of JSON, in which NaN and infinity are null."""
    return json.dumps(finite(values))


def finite(value: Any) -> Any:
    """Replace NaN and infinity by None at any depth, because JSON does not have them."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_line(line: bytes) -> dict[str, Any] | None:
    """Read a run's line; None for any other."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or "train_loss" not in values:
        return None
    epoch = values.get("epoch")
    return values if isinstance(epoch, int) and 0 <= epoch < MOST_EPOCHS else None


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read a log.txt, one mapping per epoch; skip lines that are not a run's."""
    content = path.read_bytes() if path.exists() else b""
    return [values for line in LINE.findall(content) if (values := read_line(line)) is not None]


def _take_back(path: Path, first: int, number_of: Callable[[bytes], float]) -> None:
    """Remove a run's lines that follow its last line of a number before `first`."""
    content = path.read_bytes()
    lines = [(line, number_of(line)) for line in LINE.findall(content)]
    done = max((index for index, (_, number) in enumerate(lines) if number < first), default=-1)
    left = b"".join(
        line for index, (line, number) in enumerate(lines) if index <= done or math.isnan(number)
    )
    if content.startswith(left):
        os.truncate(path, len(left))
    else:
        _edit(path, len(content), left)


def replace_lines(path: Path, content: bytes) -> None:
    """Replace all that a file holds, in place, so that a kill in between loses nothing.

    Raises:
        OSError: It cannot be written.
    """
    _edit(path, path.stat().st_size, content)


def _edit(path: Path, size: int, content: bytes) -> None:
    """Replace the first `size` bytes of a file, all it held, in place.

    The new content is on disk under another name first, so that a kill in between loses nothing.
    """
    with atomic_write(_name_edit(path)) as temporary, temporary.open("wb") as file:
        file.write(b"%d\n" % size + content)
        file.flush()
        os.fsync(file.fileno())
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    _name_edit(path).unlink()


def _finish_edit(path: Path) -> None:
    """Finish the edit of a process that was killed in it; what was appended since stays."""
    with contextlib.suppress(FileNotFoundError):
        size, _, content = _name_edit(path).read_bytes().partition(b"\n")
        now = path.read_bytes()
        if len(now) < int(size):  # it was shortened: only the other name was left to remove
            _name_edit(path).unlink()
        else:
            _edit(path, len(now), content + now[int(size) :])


def _name_edit(path: Path) -> Path:
    return path.with_name(f".{path.name}.edit")


def _append_redirects(path: Path) -> None:
    """Make this process's redirected output append: after `>` it would overwrite our lines."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
