"""Metric outputs: log.txt (one JSON object per epoch), TensorBoard, JSON and CSV; rank 0 only."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.errors import OptionError
from dino.files import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_FILE = "log.txt"
EVENTS = "tensorboard"


class MetricLog:
    """The two records of a run, log.txt and TensorBoard; a resumed run continues them."""

    def __init__(self, folder: Path, *, epoch: int, iteration: int) -> None:
        """Open both and drop lines and events from `epoch` and `iteration` on.

        The run writes these again.

        Raises:
            OptionError: The folder cannot be written to.
        """
        self.path = folder / LOG_FILE
        self._keep_lines_before(epoch)
        self.events_folder = folder / EVENTS
        self.events = _open_events(
            self.events_folder, purge_step=iteration + 1 if iteration else None
        )

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write TensorBoard scalars, one per tag."""
        for tag, value in values.items():
            self.events.add_scalar(tag, value, step)

    def write_epoch(self, values: Mapping[str, Any]) -> None:
        """Append one JSON line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(values)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Flush the events."""
        self.events.close()

    def _keep_lines_before(self, epoch: int) -> None:
        if not self.path.exists():
            return
        try:
            lines = [
                line
                for line in self.path.read_text(encoding="utf-8").splitlines()
                if _epoch_of(line) < epoch
            ]
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise OptionError(f"{self.path} cannot be rewritten: {error}") from error


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read a log.txt, one mapping per epoch; skip lines that are not JSON objects."""
    history: list[dict[str, Any]] = []
    if not path.exists():
        return history
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            history += [values] if isinstance(values, dict) else []
    return history


def _finite(value: Any) -> Any:
    """Replace NaN and infinity by None at any depth, because JSON does not have them."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_target(path: str | None, flag: str = "`json`") -> None:
    """Check, before long work, that a file can be written: its folder exists and is writable.

    Raises:
        OptionError: The file cannot be written.
    """
    if path and path != "-" and (Path(path).is_dir() or not os.access(Path(path).parent, os.W_OK)):
        raise OptionError(
            f"{flag} {path} cannot be written",
            remedy="name a file in an existing, writable folder",
        )


def write_result(target: str | None, values: Mapping[str, Any]) -> None:
    """Write a command's result as one JSON object: atomically to a file, or to stdout for `-`.

    Raises:
        OptionError: The file cannot be written.
    """
    text = json.dumps(_finite(values)) + "\n"
    if target == "-":
        sys.stdout.write(text)
    elif target:
        with atomic_write(Path(target), "`json`") as temporary:
            temporary.write_text(text, encoding="utf-8")


def write_csv(target: str, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, column names first, atomically to a CSV file; a NaN becomes an empty cell.

    Raises:
        OptionError: The file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_finite(cell) for cell in row] for row in rows)
    with atomic_write(Path(target), "`csv`") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def write_events(folder: Path, values: Mapping[str, float]) -> None:
    """Write TensorBoard scalars, one per tag, at step 0.

    Raises:
        OptionError: The folder cannot be written to.
    """
    events = _open_events(folder)
    for tag, value in values.items():
        events.add_scalar(tag, value, 0)
    events.close()


def _open_events(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # imported here: it takes a second or more

    try:
        return SummaryWriter(str(folder), purge_step=purge_step)
    except OSError as error:
        raise OptionError(f"{folder} cannot be written to: {error}") from error


def _epoch_of(line: str) -> float:
    """Return the epoch of a JSON line; infinity for a line that a crash truncated."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
