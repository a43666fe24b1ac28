"""The two records of a run go on where a resumed run left off."""

import errno
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino.errors import OptionError
from dino.runtime import log_file
from dino.runtime.log_file import read_history
from dino.runtime.metrics import (
    EVENTS,
    LOG_FILE,
    MetricLog,
    check_target,
    write_csv,
    write_events,
    write_result,
)
from dino.runtime.sinks import tensorboard as events


def read_scalars(folder: Path, tag: str) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_each_epoch_is_one_line_of_json(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, epoch=0, iteration=0)
    for epoch in range(3):
        log.write_epoch({"train_loss": 5.5, "train_lr": 0.25, "train_wd": 0.04, "epoch": epoch})
    log.close()
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2]
    assert json.loads(lines[1]) == {
        "train_loss": 5.5,
        "train_lr": 0.25,
        "train_wd": 0.04,
        "epoch": 1,
    }


@pytest.mark.parametrize(
    ("epoch", "iteration", "left"), [(0, 0, [0, 1, 2]), (0, 3, []), (1, 7, [0]), (5, 40, [0, 1, 2])]
)
def test_a_resumed_run_continues_the_log_and_a_new_one_removes_nothing(
    tmp_path: Path, epoch: int, iteration: int, left: list[int]
) -> None:
    log = MetricLog(tmp_path, epoch=0, iteration=0)
    for number in range(3):
        log.write_epoch({"train_loss": 5.5, "epoch": number})
    log.close()
    MetricLog(tmp_path, epoch=epoch, iteration=iteration).close()
    assert [values["epoch"] for values in read_history(tmp_path / LOG_FILE)] == left


def test_a_full_disk_costs_lines_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = MetricLog(tmp_path, epoch=0, iteration=0)

    def fill(file: io.FileIO, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(events, "append_whole", fill)
        full.setattr(log_file, "append_whole", fill)
        log.write_scalars({"loss": 1.0}, 1)
        log.write_epoch({"train_loss": 1.0, "epoch": 0})
    warned = f"{tmp_path / EVENTS} cannot be written to: No space left on device; lines are lost"
    assert caplog.messages == [warned]
    log.write_scalars({"loss": 2.0}, 2)
    log.write_epoch({"train_loss": 2.0, "epoch": 1})
    log.close()
    assert read_scalars(tmp_path / EVENTS, "loss") == {2: 2.0}
    assert [values["epoch"] for values in read_history(tmp_path / LOG_FILE)] == [1]


def test_a_folder_that_was_deleted_costs_lines(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, epoch=0, iteration=0)
    shutil.rmtree(tmp_path)
    log.write_scalars({"loss": 1.0}, 1)
    log.write_epoch({"train_loss": 1.0, "epoch": 0})
    log.close()
    assert log.warned and not tmp_path.exists()


def test_events_from_the_resumed_iteration_on_are_replaced(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, epoch=0, iteration=0)
    for step in range(10):
        log.write_scalars({"loss": float(step), "lr": 0.5}, step)
    log.close()
    log = MetricLog(tmp_path, epoch=0, iteration=6)
    for step in range(6, 8):
        log.write_scalars({"loss": 100.0 + step}, step)
    log.close()
    assert read_scalars(tmp_path / EVENTS, "loss") == {
        **{step: step for step in range(6)},
        6: 106.0,
        7: 107.0,
    }


def test_single_values_are_written_at_step_0(tmp_path: Path) -> None:
    write_events(tmp_path / "new", {"train/examples/sec": 12.5})
    assert read_scalars(tmp_path / "new", "train/examples/sec") == {0: 12.5}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OptionError, match="cannot be written to"):
        MetricLog(tmp_path / "file", epoch=0, iteration=0)
    with pytest.raises(OptionError, match="cannot be written to"):
        write_events(tmp_path / "file" / "events", {"a": 1.0})


def test_a_result_is_one_json_object_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(str(tmp_path / "a.json"), {"top1": 12.5, "top5": float("nan")})
    write_result("-", {"top1": 1})
    write_result(None, {"top1": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"top1": 12.5, "top5": None}
    assert capsys.readouterr().out == '{"top1": 1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(OptionError, match=r"`json` .*missing/a\.json cannot be written"):
        write_result(str(tmp_path / "missing" / "a.json"), {})


def test_a_number_that_json_lacks_is_null_at_any_depth(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_result(
        str(target), {"mean": float("nan"), "runs": {"a": {"mean": float("inf"), "frames": 3}}}
    )
    assert json.loads(target.read_text()) == {
        "mean": None,
        "runs": {"a": {"mean": None, "frames": 3}},
    }


def test_a_table_is_written_whole_with_empty_cells_for_nan(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    write_csv(str(target), [("name", "value"), ("a, b", 0.5), ("c", float("nan"))])
    assert target.read_text() == 'name,value\n"a, b",0.5\nc,\n'
    assert list(tmp_path.iterdir()) == [target]


def test_a_table_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"`csv` .*none/table\.csv cannot be written"):
        write_csv(str(tmp_path / "none" / "table.csv"), [("name",)])


@pytest.mark.parametrize("name", ["missing/a.json", "."])
def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(OptionError, match="`json` .* cannot be written"):
        check_target(str(tmp_path / name))
    for allowed in (None, "-", str(tmp_path / "a.json")):
        check_target(allowed)
