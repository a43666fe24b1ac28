"""Which processes of a run are alive: by their beats, and by the kernel on one's own host.

A thread of each process beats. SIGSTOP or a lost host silences it, a long step does not. Native
code that holds Python's lock silences it too, so the processes on the same host beat for a process
that the kernel calls running. Each process listens to those on its host and to the next rank: of
any group that falls silent, the rank before it hears so, and the store serves few requests.
"""

from __future__ import annotations

import time

from torch.distributed.distributed_c10d import Store

from dino.runtime.meeting import LOOK_EVERY, is_written, read_member, write


class Census:
    """The other processes as this one sees them; every call is a few requests to the store."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        """Read who the processes are; all of them have joined."""
        self.store, self.rank = store, rank
        self.members = [read_member(store, other) for other in range(world_size)]
        self.others = [other for other in range(world_size) if other != rank]
        here = self.members[rank]
        self.mates = [other for other in self.others if self.members[other].shares_kernel(here)]
        heard = sorted({*self.mates, (rank + 1) % world_size})
        self.heard = dict.fromkeys(heard, (0, 0.0))  # beats, and the time of the newest

    def beat(self, phase: str) -> None:
        """Beat, and say what this process is doing."""
        self.store.add(_beat(self.rank), 1)
        write(self.store, f"phase_{self.rank}", phase)

    def count_beats(self) -> dict[int, int]:
        """Return the beats of each other process so far."""
        return {other: self.store.add(_beat(other), 0) for other in self.others}

    def listen(self, now: float) -> None:
        """Note who has beaten since the last call, and beat for those that could not."""
        for other in self.heard:
            beats = self.store.add(_beat(other), 0)
            if beats > self.heard[other][0]:
                self.heard[other] = beats, now
            elif other in self.mates and self.members[other].is_running():
                self.store.add(_beat(other), 1)

    def leave(self) -> None:
        """Say that this process ends as planned."""
        write(self.store, f"left_{self.rank}", "")

    def has_left(self, rank: int) -> bool:
        """Whether a process said that it ends as planned."""
        return is_written(self.store, f"left_{rank}")

    def acknowledge(self) -> None:
        """Say that this process knows the run's failure."""
        write(self.store, f"knows_{self.rank}", "")

    def wait_for_others(self, seconds: float) -> None:
        """Wait until every other process knows the failure, has left or is gone; it has a limit.

        The store may end with this process.
        """
        give_up = time.monotonic() + seconds
        for other in self.others:
            while not (
                is_written(self.store, f"knows_{other}")
                or self.has_left(other)
                or self.is_gone(other)
                or time.monotonic() > give_up
            ):
                time.sleep(LOOK_EVERY)

    def is_gone(self, rank: int) -> bool:
        """Whether the kernel knows that a process has ended; False for another host's."""
        return rank in self.mates and self.members[rank].is_gone()

    def find_dead(self) -> int | None:
        """Return a process on this host that ended without leaving, or None."""
        gone = filter(self.is_gone, self.mates)
        return next((other for other in gone if not self.has_left(other)), None)

    def find_silent(self, now: float, limit: float) -> int | None:
        """Return the process that has been silent longest, if for more than `limit` s, or None.

        A process that has never beaten is still joining the process group.
        """
        silent = [(time, other) for other, (beats, time) in self.heard.items() if beats]
        late = (other for time, other in sorted(silent) if now - time > limit)
        return next((other for other in late if not self.has_left(other)), None)

    def find_unanswering(self, before: dict[int, int]) -> int | None:
        """Return a process that has not beaten since `before` and may be dead, or None."""
        for other, beats in self.count_beats().items():
            running = other in self.mates and self.members[other].is_running()
            if beats <= before[other] and not running and not self.has_left(other):
                return other
        return None

    def describe(self, rank: int) -> str:
        """Return a process's rank, number and host."""
        return f"rank {rank} ({self.members[rank].place})"

    def describe_phases(self) -> str:
        """Return what each process said it was doing."""
        said = (
            self.store.get(f"phase_{rank}").decode()
            if is_written(self.store, f"phase_{rank}")
            else "joining"
            for rank in range(len(self.members))
        )
        return "; ".join(f"rank {rank}: {phase}" for rank, phase in enumerate(said))


def _beat(rank: int) -> str:
    return f"beat_{rank}"
