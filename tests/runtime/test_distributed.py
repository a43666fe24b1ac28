"""What processes exchange, and that they stop together."""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.errors import OptionError
from dino.runtime import meeting
from dino.runtime.distributed import Processes, StopAgreement
from dino.runtime.launch import Launch
from tests.running import SERVER

ALONE = Launch()
COUNTS = (1, 2, 5, 6)  # rows over two processes


def test_nobody_leaves_before_all_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    store, joined = dist.HashStore(), []
    monkeypatch.setattr(meeting, "_open_store", lambda *_: store)
    monkeypatch.setattr(meeting, "_opened", {})
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)

    def join() -> None:
        joined.append(Processes(Launch(rank=1, world_size=2), "gloo", "env://"))

    second = threading.Thread(target=join)
    second.start()
    store.wait(["ask_1"], timedelta(seconds=60))
    assert joined == []
    Processes(Launch(rank=0, world_size=2), "gloo", "env://")
    second.join()
    assert [processes.rank for processes in joined] == [1]


def test_one_process_needs_nobody_and_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "init_process_group", None)
    processes, rows = Processes(ALONE, "gloo", "env://"), torch.rand(3, 2)
    assert processes.is_rank_zero
    assert processes.store is None
    assert torch.equal(processes.gather_rows(rows, 3), rows)
    assert torch.equal(processes.all_reduce_mean(rows.clone()), rows)
    assert torch.equal(processes.all_reduce_mean_async(rows.clone())(), rows)
    assert torch.equal(processes.all_reduce_sum(rows.clone()), rows)
    processes.barrier()
    processes.wait_for_all("here")
    with processes.rank_zero_first():
        pass
    processes.close()


@pytest.mark.parametrize("url", ["nonsense://here", "env://", "tcp://no-port"])
def test_a_meeting_point_that_cannot_be_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(OptionError, match=f"`dist_url` {url}: 2 processes cannot meet there"):
        Processes(Launch(rank=0, world_size=2), "gloo", url)


def work(rank: int, url: str, folder: str) -> None:
    """One of two processes: exchange everything there is to exchange, and write what came of it."""
    torch.set_num_threads(1)
    processes = Processes(
        Launch(rank=rank, world_size=2, local_rank=rank, local_world_size=2), "gloo", url
    )
    gathered = {}
    for count in COUNTS:
        rows = torch.arange(3.0 * count).reshape(count, 3)
        gathered[count] = (
            processes.gather_rows(rows[rank::2], count),
            processes.gather_rows(torch.arange(count)[rank::2], count),
        )
    mean, total = (
        processes.all_reduce_mean(torch.tensor([1.0 + rank])),
        processes.all_reduce_sum(torch.tensor([1.0 + rank])),
    )
    with processes.rank_zero_first():
        seen = sorted(path.name for path in Path(folder).glob("block*"))
        Path(folder, f"block{rank}").touch()
    stops = agree_to_stop(processes, wanted_at=2 if rank == 1 else None)
    waited = wait_without_limit(processes, Path(folder))
    result = {
        "gathered": gathered,
        "mean": mean,
        "total": total,
        "seen": seen,
        "stops": stops,
        "waited": waited,
    }
    torch.save({**result, "first": processes.is_rank_zero}, Path(folder, f"{rank}.pt"))
    processes.close()


def agree_to_stop(processes: Processes, wanted_at: int | None) -> int | None:
    """The log line at which this process stops; the barrier stands for the gradients exchanged
    between two lines."""
    agreement = StopAgreement(processes)
    for line in range(1, 8):
        if agreement.check(line == wanted_at):
            return line
        processes.barrier()
    return None


def wait_without_limit(processes: Processes, folder: Path) -> bool:
    """Whether the other process was there afterwards, that had outlasted the time limit of a
    collective."""
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
    if not processes.is_rank_zero:
        time.sleep(2)
        (folder / "late").touch()
    processes.wait_for_all("meeting")
    return (folder / "late").exists()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What two processes on one host wrote."""
    folder = tmp_path_factory.mktemp("pair")
    jobs = [
        SERVER.Process(target=work, args=(rank, f"file://{folder}/meet", str(folder)))
        for rank in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("count", COUNTS)
def test_rows_are_joined_in_data_set_order_on_every_process(pair: list[dict], count: int) -> None:
    for result in pair:
        rows, labels = result["gathered"][count]
        assert torch.equal(rows, torch.arange(3.0 * count).reshape(count, 3))
        assert torch.equal(labels, torch.arange(count))


def test_means_and_sums_are_over_processes(pair: list[dict]) -> None:
    assert [result["mean"].item() for result in pair] == [1.5, 1.5]
    assert [result["total"].item() for result in pair] == [3.0, 3.0]


def test_the_first_process_goes_first(pair: list[dict]) -> None:
    assert [result["seen"] for result in pair] == [[], ["block0"]]
    assert [result["first"] for result in pair] == [True, False]


def test_waiting_for_all_outlasts_the_limit_of_a_collective(pair: list[dict]) -> None:
    assert [result["waited"] for result in pair] == [True, True]


def test_a_wish_of_one_process_stops_both_at_the_next_line(pair: list[dict]) -> None:
    assert [result["stops"] for result in pair] == [3, 3]


class SharedStore:
    """A key-value store for threads."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.counts: dict[str, int] = {}
        self.lock = threading.Lock()

    def add(self, key: str, amount: int) -> int:
        with self.lock:
            self.counts[key] = self.counts.get(key, 0) + amount
            return self.counts[key]

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]


class ThreadProcess:
    """The part of `Processes` that the agreement needs."""

    def __init__(self, store: SharedStore, barrier: Callable[[], object]) -> None:
        self.store, self.barrier = store, barrier


@settings(max_examples=40)
@given(wanted=st.lists(st.none() | st.integers(1, 6), min_size=2, max_size=4))
def test_all_stop_at_the_line_after_the_first_wish(wanted: list[int | None]) -> None:
    store, meeting, stops = SharedStore(), threading.Barrier(len(wanted)), {}

    def take_part(rank: int) -> None:
        stops[rank] = agree_to_stop(ThreadProcess(store, lambda: meeting.wait(30)), wanted[rank])

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wishes = [line for line in wanted if line is not None]
    assert set(stops.values()) == {min(wishes) + 1 if wishes else None}


def test_a_process_alone_stops_at_once() -> None:
    agreement = StopAgreement(Processes(ALONE, "gloo", "env://"))
    assert [agreement.check(wanted) for wanted in (False, False, True)] == [False, False, True]


def test_launch_variables_are_not_written_for_a_process_alone() -> None:
    before = dict(os.environ)
    Processes(ALONE, "gloo", "env://")
    assert dict(os.environ) == before
