"""Runs the project's training step on random pixels, and counts and times what it does."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dino.data.synthetic import make_batch
from dino.devices.base import TrainStep
from dino.runtime.context import Run
from dino.training.build import build_recipe, build_step
from dino.training.config import TrainConfig
from dino.training.draws import StepDraws
from dino.training.dry_run import PhaseClock
from dino.training.step import DinoProgram
from dino.training.step_values import StepInputs

READS = {"_local_scalar_dense", "nonzero", "_unique2"}  # operators whose result the host waits for
FREE = {  # they compute nothing, although torch does not call them views
    *("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"),
    *("detach", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias"),
}
# A changed learning rate would be the cause of a new graph.
RATES = [1e-4 * (1 + step % 7) for step in range(1000)]


class StepCounts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Counts, inside its `with` block, launches by phase, uploads, and reads by the host.

    A launch is an operator that computes; views and allocations do not count. Code compiled by
    torch.compile is not inspected, if torch can leave it out.
    """

    def __init__(self) -> None:
        """Start with zero counts."""
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.launches: Counter[str] = Counter()
        self.reads, self.phase = 0, "step"
        self.uploads = self.pinned = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Tell torch that compiled code stays compiled under this mode."""
        return True

    def enter(self, phase: str) -> None:
        """Count launches for another phase from now on."""
        self.phase = phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator, and run it."""
        name = func.overloadpacket.__name__
        result = func(*args, **(kwargs or {}))
        moved = name == "_to_copy" and args[0].device != result.device
        self.reads += name in READS or (moved and result.device.type == "cpu")
        if moved and args[0].device.type == "cpu":
            self.uploads, self.pinned = self.uploads + 1, self.pinned + args[0].is_pinned()
        self.launches[self.phase] += not (moved or name in FREE or func.is_view)
        return result


@contextlib.contextmanager
def watch_phases(program: DinoProgram, enter: Callable[[str], None]) -> Iterator[None]:
    """Call `enter` with the name of each phase of a step that begins inside the `with` block."""
    before, program.enter = program.enter, enter
    try:
        yield
    finally:
        program.enter = before


@dataclass
class Workload:
    """A training step bound to one batch of random pixels, with its components."""

    config: TrainConfig
    run: Run
    program: DinoProgram
    optimizer: torch.optim.Optimizer
    step: TrainStep
    batch: Any
    draws: StepDraws
    count: int = 0

    def __call__(self) -> None:
        """Run one step as the trainer does, including the random numbers of the iteration."""
        numbers = (RATES[self.count % len(RATES)], 0.04, 0.996, 0.04, 1.0)
        self.step(self.batch, StepInputs.on_host(numbers, self.draws.begin(self.count)))
        self.count += 1

    @property
    def images(self) -> int:
        """Images per step."""
        return self.config.data.batch_size_per_device * self.config.run.accumulate_steps


def build_workload(config: TrainConfig, run: Run) -> Workload:
    """Build networks, optimizer and step as in a training run, and pixels in host memory."""
    host = torch.device("cpu")
    count = config.data.batch_size_per_device * config.run.accumulate_steps
    batch = make_batch(
        build_recipe(config), count, seed=config.run.seed, device=host, to_device=lambda rows: rows
    )
    pinned = run.device.pins_memory
    if pinned:
        batch = type(batch)(
            *(field.pin_memory(*[pinned] * isinstance(pinned, str)) for field in batch)
        )
    parts = build_step(config, run)
    return Workload(
        config=config,
        run=run,
        program=parts.program,
        optimizer=parts.optimizer,
        step=parts.step,
        draws=parts.draws,
        batch=batch,
    )


def measure_speed(
    work: Workload, *, warm_up: int, steps: int, say: Callable[[str], None], seconds: float = 1e9
) -> dict[str, Any]:
    """Measure images per second without waiting for the device between steps, and read counters.

    Args:
        work: The workload.
        warm_up: Steps before the clock starts; only they may compile new graphs.
        steps: Steps to time; fewer if they take too long.
        say: Reports the current activity.
        seconds: No step starts after this time.
    """
    device = work.run.device
    for step in range(warm_up):
        say(f"warm-up step {step + 1} of {warm_up}")
        work()
    device.synchronize()
    before, began, done = device.read_counters(), time.perf_counter(), 0
    say(f"{steps} timed steps")
    while done < steps and time.perf_counter() - began < seconds:
        work()
        done += 1
    device.synchronize()
    passed, after = time.perf_counter() - began, device.read_counters()
    return {
        "images/s": work.images * done / passed,
        "ms a step": 1e3 * passed / done,
        "steps": done,
        "batch": work.images,
        "memory peak": device.memory_peak(),
        "memory total": device.memory_total(),
        **{name.rpartition("/")[2].replace("_", " "): after[name] - before[name] for name in after},
    }


def count_step(work: Workload) -> dict[str, Any]:
    """Count the launches by phase and the host reads of one step."""
    with StepCounts() as counts:
        work()
    whole = counts.launches.total()
    with StepCounts() as counts, watch_phases(work.program, counts.enter):
        work()
    return {
        "host reads a step": counts.reads,
        "uploads a step": counts.uploads,
        "uploads from pinned memory": counts.pinned,
        "launches a step": whole,
        "launches by phase": dict(counts.launches),
    }


def time_phases(work: Workload, repeats: int = 3) -> dict[str, float]:
    """Return milliseconds by phase, synchronized after each phase; the median of some steps."""
    clock = PhaseClock(work.run.device.synchronize)
    timings = list[Mapping[str, float]]()
    with watch_phases(work.program, clock.enter):
        for _ in range(repeats + 1):
            clock.seconds.clear()
            clock.enter("transfer")
            work()
            clock.enter("")
            timings.append(dict(clock.seconds))
    return {
        phase: 1e3 * statistics.median(timing.get(phase, 0.0) for timing in timings[1:])
        for phase in timings[-1]
    }
