"""Signals of a job while loader processes start: none is left behind, none ends of them."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import pytest
from torch.utils.data import Dataset

from dino.data.loaders import read_items
from dino.data.worker_signals import HELD, OUTLIVED, holding_signals

pytestmark = pytest.mark.usefixtures("hears_signals")


class Numbers(Dataset[int]):
    """As many numbers as two loader processes need to be kept busy."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> int:
        return index


def after_start(patch: pytest.MonkeyPatch, act: Callable[[BaseProcess], None]) -> list[BaseProcess]:
    """Act as soon as a loader process is started; gives the started processes."""
    started: list[BaseProcess] = []
    start = BaseProcess.start

    def start_and_act(self: BaseProcess) -> None:
        start(self)
        started.append(self)
        act(self)

    patch.setattr(BaseProcess, "start", start_and_act)
    return started


def test_ctrl_c_between_two_starts_leaves_no_process_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = after_start(monkeypatch, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        next(read_items(Numbers(), workers=2))
    gc.collect()
    assert len(started) == 2 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not [process for process in started if process in multiprocessing.active_children()]


@pytest.mark.parametrize("name", OUTLIVED)
def test_a_process_outlives_a_signal_from_its_first_moment(
    name: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_start(monkeypatch, lambda process: os.kill(process.pid or 0, name))
    assert list(read_items(Numbers(), workers=2)) == list(range(64))


def test_signals_are_held_in_order_and_handlers_come_back() -> None:
    came: list[int] = []
    for name in HELD:
        signal.signal(name, lambda number, _: came.append(number))
    before = [signal.getsignal(name) for name in HELD]
    with holding_signals():
        for name in HELD:
            signal.raise_signal(name)
        assert came == []
    assert sorted(came) == sorted(HELD) and [signal.getsignal(name) for name in HELD] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {*HELD}


def test_what_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with holding_signals():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
