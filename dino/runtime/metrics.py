"""Metric outputs: log.txt (one JSON object per epoch), TensorBoard, JSON and CSV; rank 0 only."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dino.errors import OptionError
from dino.files import atomic_write
from dino.runtime.events import EventFile, Jpeg
from dino.runtime.log_file import append_line, open_log

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"
EVENTS = "tensorboard"


class MetricLog:
    """The two records of a run, log.txt and TensorBoard; a resumed run continues them.

    A line that cannot be written, for example because the disk is full, is lost with a warning.
    """

    def __init__(self, folder: Path, *, epoch: int, iteration: int) -> None:
        """Open both and drop a resumed run's lines and events from `epoch` and `iteration` on.

        The run writes these again.

        Raises:
            OptionError: One of them cannot be written to.
        """
        self.path, self.warned = folder / LOG_FILE, False
        open_log(self.path, epoch if iteration else None)
        self.events = EventFile(folder / EVENTS, purge_step=iteration + 1 if iteration else None)

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write TensorBoard scalars, one per tag."""
        with self._losing_a_line(EVENTS):
            self.events.add_scalars(values, step)

    def write_images(self, images: Mapping[str, Jpeg], step: int) -> None:
        """Write TensorBoard images, one per tag."""
        with self._losing_a_line(EVENTS):
            self.events.add_images(images, step)

    def write_settings(self, recipe: str, settings: Mapping[str, Any], step: int) -> None:
        """Write a run's settings to TensorBoard, as the text of a recipe and as hyperparameters."""
        with self._losing_a_line(EVENTS):
            self.events.add_settings(recipe, settings, step)

    def write_epoch(self, values: Mapping[str, Any]) -> None:
        """Append one JSON line."""
        with self._losing_a_line(LOG_FILE):
            append_line(self.path, json.dumps(_finite(values)))

    def close(self) -> None:
        """Close the events."""
        self.events.close()

    @contextlib.contextmanager
    def _losing_a_line(self, name: str) -> Iterator[None]:
        """Warn of the first line that cannot be written; the run's state is worth more."""
        try:
            yield
        except OSError as error:
            if not self.warned:
                path = self.path.with_name(name)
                logger.warning("%s cannot be written to: %s; lines are lost", path, error.strerror)
            self.warned = True


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
    events = EventFile(folder)
    try:
        events.add_scalars(values, 0)
    except OSError as error:
        raise OptionError(f"{folder} cannot be written to: {error}") from error
    finally:
        events.close()
