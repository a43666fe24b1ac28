"""metrics.jsonl and metrics.csv: every iteration once, also after a run resumed."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import pytest

from dino.errors import OptionError
from dino.runtime.sinks.base import Sink, Start
from dino.runtime.sinks.csv_table import CsvTable
from dino.runtime.sinks.json_lines import JsonLines


def read_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_rows(folder: Path) -> list[dict[str, float]]:
    """Rows as lines of JSON: cells that hold a number."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    return [{tag: float(cell) for tag, cell in row.items() if cell} for row in rows]


KINDS = pytest.mark.parametrize(
    ("kind", "read"), [(JsonLines, read_lines), (CsvTable, read_rows)], ids=["jsonl", "csv"]
)


def write(sink: Sink, *steps: int, loss: float = 1.5) -> None:
    for step in steps:
        sink.add_scalars({"train/loss": loss, "time/images_per_second": 2.0 * step}, step)


def line(step: int, loss: float = 1.5) -> dict[str, float]:
    return {"iteration": step, "train/loss": loss, "time/images_per_second": 2.0 * step}


@KINDS
def test_a_line_is_on_disk_at_once_and_a_resumed_run_replaces_what_follows(
    kind: type, read, tmp_path: Path
) -> None:
    sink = kind(Start(folder=tmp_path))
    write(sink, 10, 20, 30, 40)  # never closed: the run was killed
    inode = next(tmp_path.iterdir()).stat().st_ino
    assert read(tmp_path) == [line(10), line(20), line(30), line(40)]
    write(kind(Start(folder=tmp_path, iteration=25)), 30, loss=7.0)
    assert read(tmp_path) == [line(10), line(20), line(30, 7.0)]
    assert next(tmp_path.iterdir()).stat().st_ino == inode


@KINDS
def test_a_run_that_starts_over_begins_the_file_anew(kind: type, read, tmp_path: Path) -> None:
    write(kind(Start(folder=tmp_path)), 0, 10)
    write(kind(Start(folder=tmp_path)), 0)
    assert read(tmp_path) == [line(0)]


@KINDS
def test_scores_come_on_a_line_of_their_own_and_once(kind: type, read, tmp_path: Path) -> None:
    """A run that was killed after a score and before the save takes the score again."""
    sink = kind(Start(folder=tmp_path))
    write(sink, 10)
    sink.add_scalars({"teacher/own_view": 50.0}, 10)
    again = kind(Start(folder=tmp_path, iteration=10))
    again.add_scalars({"teacher/own_view": 50.0}, 10)
    write(again, 20)
    assert read(tmp_path) == [line(10), {"iteration": 10, "teacher/own_view": 50.0}, line(20)]


@KINDS
@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_line_that_a_crash_cut_short_is_dropped(
    kind: type, read, cut: int, tmp_path: Path
) -> None:
    write(kind(Start(folder=tmp_path)), 10, 20)
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - min(cut, len(path.read_bytes().splitlines()[-1])))
    write(kind(Start(folder=tmp_path, iteration=20)), 30)
    held = read(tmp_path)
    assert held[0] == line(10) and held[-1] == line(30)
    assert held[1:-1] in ([], [line(20)])


def test_lines_of_others_in_metrics_jsonl_stay(tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.jsonl", [b"a note\n", b'{"iterations": 3}\n', b"[1]\n\xff\n"]
    path.write_bytes(notes[0])
    write(JsonLines(Start(folder=tmp_path)), 10, 20)
    path.write_bytes(path.read_bytes() + notes[1] + notes[2])
    write(JsonLines(Start(folder=tmp_path, iteration=10)), 20, loss=3.0)
    ours = [json.dumps(line(10)).encode() + b"\n", json.dumps(line(20, 3.0)).encode() + b"\n"]
    assert path.read_bytes() == notes[0] + ours[0] + notes[1] + notes[2] + ours[1]


def test_another_table_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("name,value\n1,2\n")
    with pytest.raises(OptionError, match=r"metrics\.csv is not a table of a run; move it away"):
        CsvTable(Start(folder=tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == "name,value\n1,2\n"


@KINDS
def test_what_is_no_file_is_refused(kind: type, read, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "metrics.csv"):
        (tmp_path / name).mkdir()
    with pytest.raises(OptionError, match="is not a file"):
        kind(Start(folder=tmp_path))


def test_a_number_that_is_not_finite_is_null_or_an_empty_cell(tmp_path: Path) -> None:
    values = {"train/loss": math.nan, "train/grad_norm": math.inf, "train/lr": 0.5}
    for kind in (JsonLines, CsvTable):
        kind(Start(folder=tmp_path)).add_scalars(values, 10)
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"iteration": 10, "train/loss": null, "train/grad_norm": null, "train/lr": 0.5}\n'
    )
    assert (tmp_path / "metrics.csv").read_text() == (
        "iteration,train/loss,train/grad_norm,train/lr\n10,,,0.5\n"
    )


def test_a_new_column_comes_last_and_earlier_rows_have_no_cell_there(tmp_path: Path) -> None:
    sink = CsvTable(Start(folder=tmp_path))
    sink.add_scalars({"loss": 1.0}, 10)
    sink.add_scalars({"score": 2.0}, 10)
    sink.add_scalars({"score": 3.0, "loss": 0.5}, 20)
    assert (tmp_path / "metrics.csv").read_text() == (
        "iteration,loss,score\n10,1.0,\n10,,2.0\n20,0.5,3.0\n"
    )
