"""If one process fails, dies or freezes, all end: soon, with its reason and with its exit code."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dino import checkpoint
from dino.cli.session import exit_code
from dino.data.image_source import ImageSource
from dino.devices.config import DeviceConfig
from dino.errors import CheckpointError, DataError, Interrupted, NonFiniteError, PeerFailed
from dino.runtime import failures
from dino.runtime.config import LaunchConfig
from dino.runtime.context import open_run
from dino.runtime.distributed import Processes
from dino.runtime.failures import KEY, Failure, FailureWatch
from dino.runtime.meeting import Meeting
from dino.runtime.members import Member
from tests.running import SERVER, be_rank, find_port, make_images, train_pair


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen noise images in a flat folder."""
    return make_images(tmp_path_factory.mktemp("images"), 16)


class Line:
    """The connection to the store."""

    ended = False

    def recv(self, *_: int) -> bytes:
        if self.ended:
            return b""
        raise BlockingIOError


class Fleet:
    """Processes of one run that share a store; none of their watches looks by itself."""

    def __init__(self, world_size: int, far: tuple[int, ...]) -> None:
        self.store, self.line, self.world_size = dist.HashStore(), Line(), world_size
        self.states = dict.fromkeys(range(world_size), "running")
        for rank in range(world_size):
            host = "b" if rank in far else "a"
            member = Member(host=host, pid=rank, start="1", kernel=host)
            self.store.set(f"member_{rank}", str(member))

    def watch(self, rank: int, hang_timeout: float = 0) -> FailureWatch:
        """The watch of one process."""
        processes: Any = object.__new__(Processes)
        processes.rank, processes.world_size, processes.reads = rank, self.world_size, 0
        processes.phase, processes.waits = "work", None
        processes.meeting = (
            Meeting(self.store, self.store, self.line) if self.world_size > 1 else None
        )
        return FailureWatch(processes, hang_timeout=hang_timeout)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fleet]:
    """Build processes; `far` are on another host, whose kernel says nothing here."""
    for name in ("LINGER", "SETTLE", "ANSWER"):
        monkeypatch.setattr(failures, name, 0.0)
    for name in ("_keep_looking", "_keep_time"):
        monkeypatch.setattr(FailureWatch, name, lambda self: None)
    fleets: list[Fleet] = []

    def build(world_size: int = 2, far: tuple[int, ...] = ()) -> Fleet:
        fleets.append(Fleet(world_size, far))
        return fleets[-1]

    monkeypatch.setattr(Member, "is_running", lambda me: fleets[-1].states[me.pid] == "running")
    monkeypatch.setattr(Member, "is_gone", lambda me: fleets[-1].states[me.pid] == "gone")
    return build


LOST = RuntimeError("Connection closed by peer [127.0.0.1]:1")


def test_the_first_failure_is_the_one_that_all_report(fleet: Callable[..., Fleet]) -> None:
    two = fleet()
    two.watch(1).announce(DataError("no\n picture"))
    assert two.store.get(KEY) == b"2 rank 1 did: DataError: no picture"
    with pytest.raises(
        PeerFailed, match="ended because rank 1 did: DataError: no picture"
    ) as caught:
        two.watch(0).announce(LOST)
    assert caught.value.exit_code == 2


def test_an_error_of_ones_own_is_reported_even_when_another_process_failed_first(
    fleet: Callable[..., Fleet],
) -> None:
    two = fleet()
    two.watch(1).announce(KeyError("x"))
    two.watch(0).announce(CheckpointError("disk full"))
    assert two.store.get(KEY) == b"1 rank 1 did: KeyError: 'x'"


def test_an_error_of_torch_is_ones_own_if_all_others_live(fleet: Callable[..., Fleet]) -> None:
    four = fleet(4)
    four.watch(2).announce(RuntimeError("out of memory"))
    assert four.store.get(KEY) == b"1 rank 2 did: RuntimeError: out of memory"


def test_others_are_told_how_the_device_explains_an_error(fleet: Callable[..., Fleet]) -> None:
    two = fleet()
    two.watch(0).announce(RuntimeError("0x1"), DataError("memory is full"))
    assert two.store.get(KEY) == b"2 rank 0 did: DataError: memory is full"


def test_a_lost_connection_blames_the_process_that_the_kernel_calls_dead(
    fleet: Callable[..., Fleet],
) -> None:
    four = fleet(4)
    four.states[2] = "gone"
    for rank in (3, 0, 1):
        with pytest.raises(PeerFailed, match=r"because rank 2 \(process 2 on a\) ended without a"):
            four.watch(rank).announce(LOST)


def test_a_lost_connection_blames_the_process_that_does_not_answer(
    fleet: Callable[..., Fleet],
) -> None:
    three = fleet(3, far=(0, 1, 2))
    for rank in range(3):
        three.store.set(f"member_{rank}", str(Member(host="h", pid=rank, start="1", kernel="-")))
    with pytest.raises(PeerFailed, match=r"rank 1 \(process 1 on h\) ended or cannot be reached"):
        answer_once(three, 0)
        three.watch(2).announce(LOST)


def answer_once(fleet: Fleet, rank: int) -> None:
    """Let a process beat as soon as it is called."""
    add, watch = fleet.store.add, fleet.watch(rank)

    class Store(dist.HashStore):
        def add(self, key: str, amount: int) -> int:
            if key == failures.NEWS and amount:
                watch._look()
            return add(key, amount)

    calling = Store()
    calling.get, calling.set = fleet.store.get, fleet.store.set  # type: ignore[method-assign]
    fleet.store = calling


@pytest.mark.parametrize(("agent", "holder"), [("True", "torchrun"), ("False", "rank 0")])
def test_without_the_store_its_holder_is_named(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch, agent: str, holder: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    two = fleet()
    watch = two.watch(1)
    two.line.ended = True
    with pytest.raises(PeerFailed, match=f"{holder}.*, which holds the processes' store, ended"):
        watch.announce(LOST)


@pytest.mark.parametrize("error", [Interrupted("saved"), NonFiniteError("nan")])
def test_what_all_decide_alike_is_no_failure(fleet: Callable[..., Fleet], error: Exception) -> None:
    two = fleet()
    two.watch(1).announce(error)
    two.states[1] = "gone"
    assert two.watch(0)._look() is None


def test_a_process_alone_has_nobody_to_tell(fleet: Callable[..., Fleet]) -> None:
    alone = fleet(1).watch(0)
    alone.announce(DataError("no picture"))
    alone.leave()


def test_a_silent_process_is_named_after_the_timeout(fleet: Callable[..., Fleet]) -> None:
    three = fleet(3)
    watches = [three.watch(rank, hang_timeout=120) for rank in range(3)]
    for rank in (1, 0, 2):
        assert watches[rank]._look() is None
    three.states[1] = "stopped"
    for watches[0].awake in (30.0, 60.0, 90.0, 120.0):
        assert watches[0]._look() is None
        watches[2].awake = watches[0].awake
        assert watches[2]._look() is None
    watches[0].awake = 121.0
    found = [watches[rank]._look() for rank in (0, 2)]
    expected = (
        "rank 1 (process 1 on a) is frozen or cannot be reached: it has been silent for 120 s"
    )
    assert found == [Failure(1, f"{expected} (`hang_timeout`)")] * 2


def test_without_a_timeout_silence_is_no_failure(fleet: Callable[..., Fleet]) -> None:
    two = fleet()
    watch = two.watch(0)
    two.watch(1)._look()
    watch._look()
    two.states[1], watch.awake = "stopped", 1e6
    assert watch._look() is None


def test_a_collective_that_nobody_leaves_is_reported_with_all_phases(
    fleet: Callable[..., Fleet],
) -> None:
    two = fleet()
    first, second = two.watch(0), two.watch(1)
    first.processes.phase = "saving iteration 8"
    assert first._look() is None
    second.processes.phase = "iteration 8"
    with second.processes.waiting("a barrier"):
        assert second._look() is None
        second.awake = 1799
        assert second._look() is None
    with second.processes.waiting("a barrier"):
        second.awake = 1801
        assert second._look() is None, "another wait began"
        second.awake = 3602
        failure = second._look()
    assert failure == Failure(
        1,
        "rank 1 (process 1 on a) has waited for a barrier for 0:30:00, and all processes are alive "
        "(rank 0: saving iteration 8; rank 1: iteration 8, waiting for a barrier)",
    )


class Stopwatch:
    """Looks of the timekeeper at given times, until it ends the process."""

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def monotonic(self) -> float:
        return self.times.pop(0)

    def wait(self, _: float) -> bool:
        return not self.times


def keep_time(watch: FailureWatch, times: list[float], monkeypatch: pytest.MonkeyPatch) -> list:
    """What the timekeeper ends the process with."""
    ends: list[Failure] = []
    clock = Stopwatch(times)
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(failures, "time", clock)
        patch.setattr(watch, "closed", clock)
        patch.setattr(watch, "_end", lambda failure, store_answers: ends.append(failure))
        watch._keep_time()
    return ends


def test_a_store_that_does_not_answer_ends_the_run(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = fleet().watch(1, hang_timeout=20)
    ends = keep_time(watch, [float(time) for time in range(22)], monkeypatch)
    cause = "rank 0 (process 0 on a), which holds the processes' store, has not answered for 20 s"
    assert ends == [Failure(1, f"{cause} (`hang_timeout`)")]


def test_time_in_which_a_process_was_stopped_does_not_count(
    fleet: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = fleet().watch(1, hang_timeout=20)
    assert keep_time(watch, [0, 1, 2, 5000, 5001], monkeypatch) == []
    assert watch.awake == 5


STEPS = 10_000


def work(rank: int, world_size: int, port: int, folder: str, holds_lock: float) -> None:
    """Exchange until somebody fails or the file `enough` appears; rank 1 first holds Python's lock
    for some seconds."""
    torch.set_num_threads(1)
    failures.LINGER = 1.0
    be_rank(rank, port, world_size=world_size)
    for stream in (1, 2):
        os.dup2(os.open(f"{folder}/{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.exit(exit_code(lambda: exchange(Path(folder), holds_lock)))


def exchange(folder: Path, holds_lock: float) -> None:
    """The work of one process."""
    with open_run(DeviceConfig(device="cpu"), LaunchConfig(hang_timeout=1)) as run:
        if run.processes.rank == 1:
            ctypes.PyDLL(None).usleep(int(holds_lock * 1e6))
        for _ in range(STEPS):
            enough = torch.tensor([float((folder / "enough").exists())])
            if run.processes.all_reduce_sum(enough):
                return
            (folder / f"started{run.processes.rank}").touch()
            time.sleep(0.01)


class Crew:
    """Real processes of one run."""

    def __init__(self, folder: Path, world_size: int, holds_lock: float = 0) -> None:
        port, self.folder = find_port(), folder
        self.jobs = [
            SERVER.Process(target=work, args=(rank, world_size, port, str(folder), holds_lock))
            for rank in range(world_size)
        ]
        for job in self.jobs:
            job.start()
        give_up = time.monotonic() + 120
        while len(list(folder.glob("started*"))) < world_size and time.monotonic() < give_up:
            assert all(job.is_alive() for job in self.jobs), self.texts()
            time.sleep(0.02)

    def texts(self) -> list[str]:
        """What each process printed."""
        return [path.read_text() for path in sorted(self.folder.glob("?.txt"))]

    def finish(self, stopped: int | None = None) -> dict[int, int | None]:
        """The exit codes of all but a stopped process, which is killed."""
        for rank, job in enumerate(self.jobs):
            job.join(0 if rank == stopped else 120)
        codes = {rank: job.exitcode for rank, job in enumerate(self.jobs) if rank != stopped}
        for job in self.jobs:
            job.kill()
            job.join()
        return codes

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to a process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.jobs[rank].pid or 0, number)


def test_a_long_step_survives_and_who_is_killed_is_named(tmp_path: Path) -> None:
    crew = Crew(tmp_path, 4, holds_lock=2.5)
    crew.signal(2, signal.SIGKILL)
    codes, texts = crew.finish(), crew.texts()
    assert codes == {0: 1, 1: 1, 2: -signal.SIGKILL, 3: 1}, texts
    for rank in (0, 1, 3):
        assert texts[rank].splitlines() == [
            f"[rank {rank}] PeerFailed: ended because rank 2 "
            f"(process {crew.jobs[2].pid} on {Member.here().host}) ended without a word"
        ]


def test_the_death_of_the_process_that_holds_the_store_is_one_line(tmp_path: Path) -> None:
    crew = Crew(tmp_path, 3)
    crew.signal(0, signal.SIGKILL)
    codes, texts = crew.finish(), crew.texts()
    assert codes == {0: -signal.SIGKILL, 1: 1, 2: 1}, texts
    for text in texts[1:]:
        assert f"ended because rank 0 (process {crew.jobs[0].pid} on " in text
        assert "Traceback" not in text


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_ends_the_others_with_its_name(tmp_path: Path, rank: int) -> None:
    crew = Crew(tmp_path, 2)
    crew.signal(rank, signal.SIGSTOP)
    codes, texts = crew.finish(stopped=rank), crew.texts()
    assert codes == {1 - rank: 1}, texts
    assert f"ended because rank {rank} (process {crew.jobs[rank].pid} on " in texts[1 - rank]


def test_a_run_that_is_done_leaves_without_a_word(tmp_path: Path) -> None:
    crew = Crew(tmp_path, 3)
    (tmp_path / "enough").touch()
    assert crew.finish() == {0: 0, 1: 0, 2: 0}
    assert crew.texts() == ["", "", ""]


def break_images_of_one_rank() -> None:
    """Every image this process reads is broken."""
    from dino.data import image_source

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise DataError(f"{path} cannot be decoded")

    image_source.read_image = refuse


def break_saving() -> None:
    """The disk is full."""

    def refuse(*_: object) -> None:
        raise CheckpointError("no space left")

    checkpoint.save_latest = refuse


@pytest.mark.parametrize(
    ("failing", "prepare", "reason"),
    [
        (1, break_images_of_one_rank, "DataError: "),
        (0, break_saving, "CheckpointError: no space left"),
    ],
)
def test_a_failure_of_one_process_ends_both_soon_with_its_code(
    images: Path, tmp_path: Path, failing: int, prepare: Callable[[], None], reason: str
) -> None:
    began = time.monotonic()
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    results = train_pair(
        tmp_path, *words, prepare=(prepare, None) if failing == 0 else (None, prepare)
    )
    assert time.monotonic() - began < 60, "a collective would wait for half an hour"
    assert [result.code for result in results] == [2, 2], [result.text for result in results]
    other = results[1 - failing].text
    assert f"[rank {failing}] {reason}" in results[failing].text
    assert (
        f"[rank {1 - failing}] PeerFailed: ended because rank {failing} did: {reason}" in other
    ), other
    assert "Traceback" not in other


def hide_the_checkpoint() -> None:
    """This process's output folder is on another disk."""
    checkpoint.load_latest = lambda *_, **__: None


def test_a_folder_that_the_hosts_do_not_share_is_refused(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    assert [result.code for result in train_pair(tmp_path, *words, "--epochs", 1)] == [0, 0]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    results = train_pair(tmp_path, *words, prepare=(None, hide_the_checkpoint))
    assert [result.code for result in results] == [2, 2], [result.text for result in results]
    assert (
        "holds iteration 0 here and 2 on rank 0's host; --output_dir must be a folder that all"
        in results[1].text
    )


def read_other_images() -> None:
    """This process's folder holds other images."""
    ImageSource.fingerprint = lambda _: "other"


def test_processes_with_different_images_do_not_train(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    results = train_pair(tmp_path, *words, prepare=(None, read_other_images))
    assert [result.code for result in results] == [2, 2], [result.text for result in results]
    for result in results:
        assert re.search(r"differ: images 16 \(other\) and 16 \(\w{16}\); start all", result.text)
        assert "Traceback" not in result.text
    assert not (tmp_path / "run" / checkpoint.LATEST).exists()
