"""The two records of a run go on where a resumed run left off."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino.errors import OptionError
from dino.runtime import metrics
from dino.runtime.metrics import (
    EVENTS,
    LOG_FILE,
    MetricLog,
    check_target,
    write_csv,
    write_events,
    write_result,
)


def read_epochs(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / LOG_FILE).read_text().splitlines()]


def read_scalars(folder: Path, tag: str) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def write_lines(folder: Path, epochs: int) -> Path:
    lines = [
        json.dumps({"train_loss": 1.5, "train_lr": 0.1, "epoch": epoch}) for epoch in range(epochs)
    ]
    (folder / LOG_FILE).write_text("".join(f"{line}\n" for line in lines))
    return folder / LOG_FILE


@pytest.fixture
def no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave TensorBoard out, for tests of log.txt alone."""
    monkeypatch.setattr(metrics, "_open_events", lambda *_, **__: None)


@pytest.mark.usefixtures("no_events")
def test_each_epoch_is_one_line_of_json(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, epoch=0, iteration=0)
    for epoch in range(3):
        log.write_epoch({"train_loss": 5.5, "train_lr": 0.25, "train_wd": 0.04, "epoch": epoch})
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    assert json.loads(lines[1]) == {
        "train_loss": 5.5,
        "train_lr": 0.25,
        "train_wd": 0.04,
        "epoch": 1,
    }
    assert read_epochs(tmp_path) == [0, 1, 2]


@pytest.mark.usefixtures("no_events")
@pytest.mark.parametrize("epoch", range(5))
def test_a_resumed_run_takes_back_the_lines_it_will_write_anew(tmp_path: Path, epoch: int) -> None:
    write_lines(tmp_path, 4)
    log = MetricLog(tmp_path, epoch=epoch, iteration=7)
    assert read_epochs(tmp_path) == list(range(min(epoch, 4)))
    log.write_epoch({"epoch": epoch})
    assert read_epochs(tmp_path) == [*range(min(epoch, 4)), epoch]


@pytest.mark.usefixtures("no_events")
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 60))
def test_a_line_cut_short_by_a_crash_is_taken_back(tmp_path: Path, cut: int) -> None:
    path = write_lines(tmp_path, 3)
    whole = path.read_bytes()
    length = len(whole) // 3
    path.write_bytes(whole[: max(2 * length, len(whole) - cut)])
    log = MetricLog(tmp_path, epoch=2, iteration=7)
    log.write_epoch({"epoch": 2})
    assert read_epochs(tmp_path) == [0, 1, 2]
    assert path.read_bytes()[: 2 * length] == whole[: 2 * length]


@pytest.mark.usefixtures("no_events")
@pytest.mark.parametrize("line", ["[1]", "{}", '{"epoch": null}', "7", '{"epo', "\0\0\0"])
def test_foreign_lines_are_taken_back(tmp_path: Path, line: str) -> None:
    path = write_lines(tmp_path, 2)
    with path.open("a") as file:
        file.write(line)
    MetricLog(tmp_path, epoch=9, iteration=7)
    assert read_epochs(tmp_path) == [0, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == [LOG_FILE]


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


def test_a_log_that_cannot_be_rewritten_is_named(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).mkdir()
    with pytest.raises(OptionError, match=r"log\.txt cannot be rewritten"):
        MetricLog(tmp_path, epoch=0, iteration=0)


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
