"""TensorBoard reads our events, and a record is whole or not there."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino.errors import OptionError
from dino.runtime.events import EventFile


def read(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_are_read_back_at_once_by_tag_and_step(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "new")
    events.add_scalars({"loss": 1.5, "train/lr": 0.25}, 3)
    events.add_scalars({"loss": 2.5}, 4)
    events.close()
    assert read(tmp_path / "new", "loss") == [(3, 1.5), (4, 2.5)]
    assert read(tmp_path / "new", "train/lr") == [(3, 0.25)]


def test_a_full_disk_leaves_the_records_before_it_readable(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.add_scalars({"loss": 1.5}, 1)
    size, limits = (
        next(tmp_path.iterdir()).stat().st_size,
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, limits[1]))
    try:
        with pytest.raises(OSError, match="space|large"):
            events.add_scalars({"loss": 2.5}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    events.add_scalars({"loss": 3.5}, 3)
    events.close()
    assert read(tmp_path, "loss") == [(1, 1.5), (3, 3.5)]


def test_two_files_of_one_second_do_not_meet(tmp_path: Path) -> None:
    for _ in range(3):
        EventFile(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OptionError, match="file cannot be written to"):
        EventFile(tmp_path / "file")
