"""Processes find those of their own run, whatever else the store holds."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from dino.errors import OptionError
from dino.runtime import meeting
from dino.runtime.launch import Launch
from dino.runtime.meeting import Meeting, meet, read_member, write
from dino.runtime.members import Member

Join = Callable[..., Meeting | OptionError]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.HashStore:
    """What stands for torchrun's store: it stays over all meetings of a test."""
    store = dist.HashStore()
    monkeypatch.setattr(meeting, "_open_store", lambda *_: store)
    monkeypatch.setattr(meeting, "_opened", {})
    monkeypatch.setattr(meeting, "LOOK_EVERY", 0.001)
    return store


def meet_all(ranks: tuple[int, ...], world_size: int) -> list[Meeting | OptionError]:
    """What each rank gets, in threads of this process."""
    got: dict[int, Meeting | OptionError] = {}

    def join(place: int, rank: int) -> None:
        try:
            got[place] = meet(Launch(rank=rank, world_size=world_size), "env://")
        except OptionError as error:
            got[place] = error

    threads = [threading.Thread(target=join, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [got[place] for place in range(len(ranks))]


def test_a_restarted_run_sees_nothing_of_the_attempt_before(store: dist.HashStore) -> None:
    for _ in range(3):
        runs = meet_all((0, 1, 2), 3)
        for rank, run in enumerate(runs):
            assert run.store.add("failure written", 0) == 0
            assert run.watch.add("stop written", 0) == 0
            assert read_member(run.store, rank) == Member.here()
        runs[1].store.add("failure written", 1)
        runs[1].store.add("stop written", 1)
        assert [run.store.add("failure written", 0) for run in runs] == [1, 1, 1]


def test_what_a_process_of_before_asked_misleads_nobody(store: dist.HashStore) -> None:
    write(store, "ask_1", "stale")
    write(store, "answer_stale", "old")
    runs = meet_all((0, 1), 2)
    runs[0].store.set("here", "x")
    assert runs[1].store.get("here") == b"x"


def test_two_processes_of_one_rank_are_named(store: dist.HashStore) -> None:
    meet_all((0, 1, 2), 3)
    name = store.get(meeting.RUNNING).decode()
    with pytest.raises(OptionError, match=r"rank 2 is process \d+ on .* and also process \d+ on"):
        meeting._enter(store, name, 2)


def test_a_run_in_progress_is_noticed_by_its_beats(
    store: dist.HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    meet_all((0, 1), 2)
    run = PrefixStore(store.get(meeting.RUNNING).decode(), store)
    monkeypatch.setattr(meeting.time, "sleep", lambda _: run.add("beat_0", 1))
    with pytest.raises(OptionError, match="another job is running at this meeting point") as caught:
        meeting._ask(store, 1)
    assert caught.value.remedy == meeting.REMEDY
    assert f"process {os.getpid()} on" in str(caught.value)


def test_processes_that_do_not_come_are_named(
    store: dist.HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "JOIN_TIMEOUT", timedelta(seconds=0.05))
    with pytest.raises(OptionError, match=r"ranks 1, 2 did not join in 0:00:00.05"):
        meet(Launch(rank=0, world_size=3), "env://")
    with pytest.raises(OptionError, match=r"rank 0 did not join"):
        meet(Launch(rank=1, world_size=3), "env://")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server of something else."""
    with socket.create_server(("", 0)) as server:
        yield server


def test_a_port_that_is_taken_is_one_line(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "_opened", {})
    url = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(OptionError, match="2 processes cannot meet there") as caught:
        meet(Launch(rank=0, world_size=2), url)
    assert caught.value.remedy == meeting.REMEDY and "\n" not in str(caught.value)


def test_the_end_of_the_store_shows_without_asking_it(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = listener.accept()
        line = meeting._find_line(f"tcp://127.0.0.1:{port}")
        assert line is not None and line.getpeername() == client.getpeername()
        run = Meeting(dist.HashStore(), dist.HashStore(), line)
        assert not run.is_over()
        accepted.sendall(b"an answer")
        assert not run.is_over()
        assert client.recv(9) == b"an answer"
        accepted.close()
        client.setblocking(True)
        with contextlib.suppress(OSError):
            client.recv(1)  # waits for the end to arrive
        assert run.is_over()
        line.close()


def test_a_store_without_a_server_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert meeting._find_line("file:///somewhere") is None
    assert not Meeting(dist.HashStore(), dist.HashStore()).is_over()
