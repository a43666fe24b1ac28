"""metrics.jsonl: a line of JSON for each line of the log, in a file that may hold other lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from dino.runtime.log_file import LINE, append_line, open_log, write_json
from dino.runtime.sinks.base import Sink, Start, select_new

FILE = "metrics.jsonl"
ITERATION = "iteration"  # the first key of a line of ours
START = b'{"iteration": '  # of a line, of which a crash may have left only a part


class JsonLines(Sink):
    """One object a line, with the iteration first and null for a number that is not finite."""

    def __init__(self, start: Start) -> None:
        """Open the file, and take back what the run will write again.

        Raises:
            OptionError: It cannot be written to.
        """
        self.path = start.folder / FILE
        self.place = str(self.path)
        open_log(self.path, start.first, number_of)
        lines = [_read(line) for line in LINE.findall(self.path.read_bytes())]
        last = (line for line in lines if line.get(ITERATION) == start.iteration)
        self.held = {tag: start.iteration for line in last for tag in line}

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Append a line.

        Raises:
            OSError: It cannot be written.
        """
        if new := select_new(values, step, self.held):
            append_line(self.path, write_json({ITERATION: step, **new}), flush=False)


def number_of(line: bytes) -> float:
    """A line's iteration, infinity for one that a crash cut short, NaN for one that is not ours."""
    iteration = _read(line).get(ITERATION)
    if line.startswith(START) and isinstance(iteration, int):
        return float(iteration)
    return math.inf if line.startswith(START) and not line.endswith(b"\n") else math.nan


def _read(line: bytes) -> dict[str, Any]:
    """A line's values; none if it is not an object."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
