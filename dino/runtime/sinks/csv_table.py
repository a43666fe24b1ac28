"""metrics.csv: a row for each line of the log, with a column for each tag."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from dino.errors import OptionError
from dino.runtime.log_file import REMEDY, append_line, finite, open_log, replace_lines
from dino.runtime.sinks.base import Sink, Start, select_new

FILE = "metrics.csv"
ITERATION = "iteration"  # the first column


class CsvTable(Sink):
    """Rows in the order of the iterations; a cell is empty where a line has no number of a tag."""

    def __init__(self, start: Start) -> None:
        """Open the file, and take back what the run will write again.

        Raises:
            OptionError: It cannot be written to, or is another table.
        """
        self.path = start.folder / FILE
        self.place = str(self.path)
        open_log(self.path, None)
        header = _read_rows(self.path)[:1]
        if header and header[0][0] != ITERATION:
            raise OptionError(f"{self.path} is not a table of a run", remedy=REMEDY)
        open_log(self.path, start.first, number_of)
        self.columns, *rows = _read_rows(self.path) or [[]]
        last = (row for row in rows if row[0] == str(start.iteration))
        cells = (pair for row in last for pair in zip(self.columns, row, strict=False))
        self.held = {tag: start.iteration for tag, cell in cells if cell}

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Append a row; a new tag becomes the last column of the table.

        Raises:
            OSError: It cannot be written.
        """
        if new := select_new(values, step, self.held):
            row = {ITERATION: step, **{tag: finite(value) for tag, value in new.items()}}
            self._add_columns(tag for tag in row if tag not in self.columns)
            append_line(self.path, _write_row(row.get(tag) for tag in self.columns), flush=False)

    def _add_columns(self, tags: Iterable[str]) -> None:
        if not (new := list(tags)):
            return
        columns = [*self.columns, *new]
        rows = [row + [""] * len(new) for row in _read_rows(self.path)[1:]]
        lines = [_write_row(row) for row in (columns, *rows)]
        replace_lines(self.path, "".join(f"{line}\n" for line in lines).encode())
        self.columns = columns


def number_of(line: bytes) -> float:
    """A row's iteration, 0 for the column names, infinity for a row that a crash cut short."""
    cell = line.partition(b",")[0]
    if not line.endswith(b"\n"):
        return math.inf
    if cell.strip() == ITERATION.encode():
        return 0.0
    return float(cell) if cell.isdigit() else math.nan


def _read_rows(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    return [row for row in csv.reader(io.StringIO(text)) if row]


def _write_row(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
