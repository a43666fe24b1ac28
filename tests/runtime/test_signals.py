"""Signals that end a run: when they wait for a checkpoint, and what they say about it."""

import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from dino.errors import Interrupted, StoppedByCtrlC
from dino.runtime.signals import STOP_SIGNALS, StopRequest, leaving_on

pytestmark = pytest.mark.usefixtures("hears_signals")


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in STOP_SIGNALS]


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_a_stop_signal_is_remembered_and_handlers_are_restored(name: signal.Signals) -> None:
    before = handlers()
    with StopRequest().listening() as stop:
        stop.done = 1
        assert not stop and stop.signal is None
        signal.raise_signal(name)
        assert stop and stop.signal is name
    assert handlers() == before and stop


def test_handlers_are_restored_after_an_error() -> None:
    before = handlers()
    with pytest.raises(RuntimeError, match="work"), StopRequest().listening():
        raise RuntimeError("work")
    assert handlers() == before


def test_the_documented_signals_are_listened_to() -> None:
    assert {name.name for name in STOP_SIGNALS} == {"SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"}


def test_a_second_ctrl_c_ends_at_once_and_says_what_is_saved() -> None:
    expected = "^saved is iteration 3 in x.pth; the same command continues$"
    with pytest.raises(KeyboardInterrupt, match=expected), StopRequest().listening() as stop:
        stop.resume(3, "x.pth")
        stop.done = 4
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_after_a_schedulers_signal_is_not_the_second() -> None:
    with StopRequest().listening() as stop:
        stop.done = 1
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal is signal.SIGINT


def test_ctrl_c_with_nothing_to_save_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt, match="^nothing is saved$"), StopRequest().listening():
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("alone", "unsaved"), [(True, False), (False, True)])
def test_work_of_the_only_process_is_safe_when_its_writing_begins(
    alone: bool, unsaved: bool
) -> None:
    stop = StopRequest(alone=alone)
    stop.resume(3, "x.pth")
    assert not stop.unsaved
    stop.done = 4
    assert stop.unsaved
    stop.hand_over()
    assert stop.unsaved is unsaved and stop.saved == "iteration 3 in x.pth"
    stop.keep(4, "x.pth")
    assert stop.saved == "iteration 4 in x.pth"


def test_a_closed_terminal_with_nothing_to_save_ends_at_once() -> None:
    with pytest.raises(SystemExit) as end, StopRequest().listening():
        signal.raise_signal(signal.SIGHUP)
    assert end.value.code == 129


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_waits_for_the_first_step(name: signal.Signals) -> None:
    with StopRequest().listening() as stop:
        signal.raise_signal(name)
        assert stop.signal is name


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_what_was_ignored_stays_ignored(name: signal.Signals) -> None:
    """nohup ignores SIGHUP, and shells ignore Ctrl-C in their background jobs."""
    signal.signal(name, signal.SIG_IGN)
    with StopRequest().listening() as stop, leaving_on(name):
        signal.raise_signal(name)
    assert not stop and signal.getsignal(name) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("came", "kind", "code", "reason"),
    [
        (signal.SIGTERM, Interrupted, 75, "SIGTERM"),
        (signal.SIGHUP, Interrupted, 75, "SIGHUP"),
        (signal.SIGINT, StoppedByCtrlC, 130, "SIGINT"),
        (None, Interrupted, 75, "a signal to another process"),
    ],
)
def test_a_saved_run_ends_with_the_code_of_its_signal(
    came: signal.Signals | None, kind: type, code: int, reason: str
) -> None:
    stop = StopRequest()
    stop.signal = came
    stop.keep(3, "x.pth")
    error = stop.explain()
    assert (type(error), error.exit_code) == (kind, code)
    assert str(error) == f"{reason}: saved iteration 3 in x.pth; the same command continues"


def test_sigterm_ends_the_block_and_what_it_made_is_taken_away(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(SystemExit) as caught,
        leaving_on(signal.SIGTERM),
        tempfile.TemporaryDirectory(dir=tmp_path),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert caught.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_nothing_is_caught() -> None:
    found: list[list[Any]] = []

    def listen() -> None:
        with StopRequest().listening(), leaving_on(signal.SIGTERM):
            found.append(handlers())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [handlers()]
