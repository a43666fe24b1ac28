"""A bar on a terminal, plain lines elsewhere."""

import io
import logging
import os
import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino.runtime import progress
from dino.runtime.progress import Progress, format_seconds


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until `clock.now` is set."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())


def read_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_without_a_terminal_each_advance_is_a_plain_line(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        shown = Progress(20, "epoch 0", start=10)
        clock.now += 50
        shown.advance(15, {"loss": "2.5", "images/s": "80"})
        shown.close()
    assert read_lines(caplog) == ["epoch 0  15/20  loss 2.5  images/s 80  eta 0:00:50"]
    assert not re.search(r"[\r\x1b]", caplog.text)


def test_hidden_progress_says_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO):
        hidden = Progress(3, "epoch 0", shown=False)
        hidden.advance(2)
        hidden.close()
    assert read_lines(caplog) == []
    assert terminal.getvalue() == ""


def test_on_a_terminal_a_bar_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO):
        shown = Progress(20, "epoch 7", start=10)
        shown.advance(12, {"loss": "2.5"})
        assert shown.bar is not None
        assert shown.bar.n == 12
        shown.advance(20)
        assert shown.bar.n == 20
        shown.close()
    assert "epoch 7" in terminal.getvalue()
    assert "loss 2.5" in terminal.getvalue()
    assert read_lines(caplog) == []


def test_a_bar_has_80_columns_and_log_lines_have_lines_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    shown = Progress(125_000, "training", start=119_990)
    values = {"epoch": "100/100", "loss": "9.1234", "lr": "0.000123", "images/s": "1234.5"}
    shown.advance(120_000, {**values, "data wait": "12%", "skipped steps": "3"})
    logging.getLogger().warning("a line")
    shown.close()
    assert logging.getLogger().handlers == [handler]
    lines = re.split(r"[\r\n]", terminal.getvalue())
    kept = "training 120000/125000, loss 9.1234 img/s 1234.5 wait 12% skipped 3 eta "
    assert "a line" in lines and max(map(len, lines)) <= 80
    assert any(line.startswith(kept) for line in lines)
    shown = Progress(300, "training")
    shown.advance(10, values)
    shown.close()
    assert "epoch 100/100 loss 9.1234 lr 0.000123 img/s 1234.5 eta" in terminal.getvalue()


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 120])
def test_a_bar_fits_its_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = Progress(125_000, "training")
    values = {"epoch": "100/100", "loss": "9.1234", "lr": "0.000123", "own view": "45%"}
    assert shown.bar is not None
    shown.bar.dynamic_ncols, shown.bar.ncols = False, columns
    shown.advance(10, {**values, "images/s": "1234.5", "data wait": "12%", "skipped steps": "3"})
    shown.close()
    lines = re.split(r"[\r\n]", terminal.getvalue())
    assert max(map(len, lines)) <= columns
    last = next(line for line in lines if line.startswith("training 10/"))
    assert " eta " in last or columns == 30
    assert ("loss 9.1234" in last) == (columns >= 60)


def test_a_redrawn_bar_counts_and_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    shown = Progress(20, "training", start=10)
    shown.redraw(12)
    shown.advance(15)
    assert shown.bar is not None and shown.bar.n == 15
    assert "training 12/20" in terminal.getvalue()
    shown.close()


def test_where_log_lines_go_through_a_pipe_there_is_no_bar(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`dino pretrain | tee log`: the bar and the lines would meet on the terminal."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    reader, writer = os.pipe()
    with os.fdopen(reader), os.fdopen(writer, "w") as pipe, caplog.at_level(logging.INFO):
        monkeypatch.setattr("sys.stdout", pipe)
        shown = Progress(20, "training")
        shown.redraw(2)
        shown.advance(10)
        shown.close()
        monkeypatch.undo()
    assert shown.bar is None and terminal.getvalue() == ""
    assert len(read_lines(caplog)) == 1


def test_the_time_left_follows_the_pace_of_this_run(clock: SimpleNamespace) -> None:
    shown = Progress(100, "epoch 0", start=40)
    assert shown.eta() == "0:00:00"
    clock.now += 3600
    shown.advance(60)
    assert shown.eta() == "2:00:00"  # 20 steps took an hour, 40 are left
    shown.advance(100)
    assert shown.eta() == "0:00:00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (0.6, "0:00:01"),
        (59.6, "0:01:00"),
        (3599, "0:59:59"),
        (3600, "1:00:00"),
        (400000, "111:06:40"),
    ],
)
def test_seconds_are_written_as_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@given(st.floats(0, 1e7))
def test_written_seconds_read_back(seconds: float) -> None:
    hours, minutes, rest = map(int, format_seconds(seconds).split(":"))
    assert 3600 * hours + 60 * minutes + rest == round(seconds)
    assert 0 <= minutes < 60 > rest >= 0


def test_followed_items_count_one_by_one_with_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    progress = Progress(10, "items")
    with caplog.at_level(logging.INFO):
        for items in (range(5), range(0), range(5, 10)):
            assert list(progress.follow(items, every=2)) == list(items)
    assert [message.split()[1] for message in caplog.messages] == [
        "2/10",
        "4/10",
        "5/10",
        "7/10",
        "9/10",
        "10/10",
    ]
