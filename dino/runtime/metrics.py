"""Metric outputs: a run's log.txt and sinks, a command's JSON and CSV; rank 0 only."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dino.errors import OptionError
from dino.files import atomic_write
from dino.runtime.log_file import append_line, finite, open_log, write_json
from dino.runtime.sinks import open_sinks
from dino.runtime.sinks.base import Jpeg, Start
from dino.runtime.sinks.tensorboard import EVENTS, EventFile

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"


class MetricLog:
    """The records of a run: log.txt, a line an epoch, and its sinks; a resumed run continues them.

    A line that cannot be written, for example because the disk is full, is lost with a warning.
    """

    def __init__(
        self,
        folder: Path,
        *,
        epoch: int,
        iteration: int,
        log_to: Sequence[str] = (EVENTS,),
        groups: Mapping[str, str] | None = None,
    ) -> None:
        """Open all and drop a resumed run's lines from `epoch` and `iteration` on.

        The run writes these again.

        Args:
            folder: The run's output folder.
            epoch: Epochs done.
            iteration: Iterations done.
            log_to: Names of the sinks.
            groups: Tags in groups by tag. Sinks get the former, TensorBoard both.

        Raises:
            OptionError: One of them cannot be written to.
        """
        self.path, self.groups, self.warned = folder / LOG_FILE, groups or {}, set[str | None]()
        open_log(self.path, epoch if iteration else None)
        also = {group: tag for tag, group in self.groups.items()}
        self.sinks = open_sinks(log_to, Start(folder=folder, iteration=iteration, also=also))

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers of an iteration by tag."""
        named = {self.groups.get(tag, tag): value for tag, value in values.items()}
        for sink in self.sinks:
            with self._losing_a_line(sink.place):
                sink.add_scalars(named, step)

    def write_images(self, images: Mapping[str, Jpeg], step: int) -> None:
        """Write pictures of an iteration by tag."""
        for sink in self.sinks:
            with self._losing_a_line(sink.place):
                sink.add_images(images, step)

    def write_settings(self, recipe: str, settings: Mapping[str, Any], step: int) -> None:
        """Write a run's settings, as the text of a recipe and by name."""
        for sink in self.sinks:
            with self._losing_a_line(sink.place):
                sink.add_settings(recipe, settings, step)

    def write_epoch(self, values: Mapping[str, Any]) -> None:
        """Append one JSON line to log.txt."""
        with self._losing_a_line(str(self.path)):
            append_line(self.path, write_json(values))

    def close(self, *, completed: bool = True) -> None:
        """Close the sinks; `completed` says whether the run reached its end."""
        for sink in self.sinks:
            sink.close(completed=completed)

    @contextlib.contextmanager
    def _losing_a_line(self, place: str) -> Iterator[None]:
        """Warn of the first line that cannot be written; the run's state is worth more."""
        try:
            yield
        except OSError as error:
            if error.strerror not in self.warned:
                why = "%s cannot be written to: %s; lines are lost"
                logger.warning(why, place, error.strerror)
            self.warned.add(error.strerror)


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
    text = write_json(values) + "\n"
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
    csv.writer(text, lineterminator="\n").writerows([finite(cell) for cell in row] for row in rows)
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
