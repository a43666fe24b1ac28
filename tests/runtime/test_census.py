"""Who is alive, as one process sees it."""

from collections.abc import Callable

import pytest
import torch.distributed as dist

from dino.runtime.census import Census
from dino.runtime.members import Member


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What the kernel says of each process, by its number; these are on one host."""
    states = dict.fromkeys(range(4), "running")
    monkeypatch.setattr(Member, "is_running", lambda self: states[self.pid] == "running")
    monkeypatch.setattr(Member, "is_gone", lambda self: states[self.pid] == "gone")
    return states


@pytest.fixture
def census(states: dict[int, str]) -> Callable[[int], Census]:
    """The view of one of four processes; the last one is on another host."""
    store = dist.HashStore()
    for rank in range(4):
        host = "b" if rank == 3 else "a"
        store.set(f"member_{rank}", str(Member(host=host, pid=rank, start="1", kernel=host)))
    return lambda rank: Census(store, rank, 4)


def hear_all(census: Callable[[int], Census], *ranks: int) -> None:
    """Let processes beat once."""
    for rank in ranks:
        census(rank).beat("work")


def test_silence_counts_from_the_last_beat(
    census: Callable[[int], Census], states: dict[int, str]
) -> None:
    zero = census(0)
    hear_all(census, 1, 2, 3)
    zero.listen(10)
    assert zero.find_silent(100, 100) is None
    states[2] = "stopped"
    hear_all(census, 1, 3)
    zero.listen(20)
    assert zero.find_silent(110, 100) is None
    assert zero.find_silent(110.5, 100) == 2
    hear_all(census, 2)
    zero.listen(111)
    assert zero.find_silent(111, 100) is None


def test_a_process_that_has_not_begun_to_beat_is_not_silent(
    census: Callable[[int], Census],
) -> None:
    assert census(0).find_silent(1e9, 1) is None


def test_processes_of_a_host_beat_for_one_that_runs_but_cannot(
    census: Callable[[int], Census], states: dict[int, str]
) -> None:
    first, mate = census(0), census(1)
    hear_all(census, 0, 1, 2, 3)
    first.listen(0)
    mate.listen(0)
    states[2] = "stopped"
    for now in (50, 60):  # 0 and 1 run and hold Python's lock, 2 is stopped
        first.listen(now)
        mate.listen(now)
    assert {rank: time for rank, (_, time) in mate.heard.items()} == {0: 60, 2: 0}
    assert {rank: time for rank, (_, time) in first.heard.items()} == {1: 60, 2: 0}
    assert first.find_silent(71, 70) == mate.find_silent(71, 70) == 2


def test_the_rank_before_a_host_hears_that_it_is_silent(
    census: Callable[[int], Census], states: dict[int, str]
) -> None:
    hear_all(census, 0, 1, 2, 3)
    before, after = census(2), census(3)
    assert (list(before.heard), list(after.heard)) == ([0, 1, 3], [0])
    before.listen(0)
    after.listen(0)
    assert before.find_silent(61, 60) == 0
    hear_all(census, 0, 1, 2)
    before.listen(60)
    assert before.find_silent(61, 60) == 3
    assert after.find_silent(61, 60) == 0


def test_a_death_is_known_on_the_same_host_alone(
    census: Callable[[int], Census], states: dict[int, str]
) -> None:
    states[2] = states[3] = "gone"
    assert (census(0).find_dead(), census(1).find_dead(), census(3).find_dead()) == (2, 2, None)
    assert (census(0).is_gone(2), census(0).is_gone(3), census(0).is_gone(1)) == (
        True,
        False,
        False,
    )


def test_who_left_is_neither_dead_nor_silent(
    census: Callable[[int], Census], states: dict[int, str]
) -> None:
    hear_all(census, 1, 2, 3)
    zero = census(0)
    zero.listen(0)
    for rank in (1, 2, 3):
        census(rank).leave()
        states[rank] = "gone"
    assert zero.find_dead() is None
    assert zero.find_silent(1000, 1) is None
    assert zero.find_unanswering(zero.count_beats()) is None


def test_a_call_is_answered_by_a_beat_or_by_the_kernel(
    census: Callable[[int], Census], states: dict[int, str]
) -> None:
    zero = census(0)
    before = zero.count_beats()
    assert zero.find_unanswering(before) == 3  # the kernel says that 1 and 2 run
    states[1] = "stopped"
    hear_all(census, 3)
    assert zero.find_unanswering(before) == 1
    hear_all(census, 1)
    assert zero.find_unanswering(before) is None


def test_phases_of_all_are_one_text(census: Callable[[int], Census]) -> None:
    census(0).beat("saving")
    census(2).beat("iteration 7, waiting for a barrier")
    assert census(1).describe_phases() == (
        "rank 0: saving; rank 1: joining; rank 2: iteration 7, waiting for a barrier; "
        "rank 3: joining"
    )
    assert census(0).describe(3) == "rank 3 (process 3 on b)"
