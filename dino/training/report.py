"""Reports to the user: progress line, log.txt, sinks, warnings about collapse and waiting."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dino.data.loaders import count_cores
from dino.runtime.distributed import Processes
from dino.runtime.metrics import MetricLog
from dino.runtime.progress import Progress
from dino.runtime.sinks.base import Jpeg
from dino.runtime.sinks.tensorboard import EVENTS
from dino.training.collapse import CollapseWatch
from dino.training.estimate import SETTLING_LINES, EndEstimate
from dino.training.plan import Plan
from dino.training.step import DinoProgram
from dino.training.step_values import METERS
from dino.training.tags import GROUPS

logger = logging.getLogger(__name__)

LARGEST_WAIT = 0.1  # share of the time that a device may wait for images without a warning


@dataclass(frozen=True, kw_only=True)
class MeterSnapshot:
    """Values that the host read from the device.

    Attributes:
        sums: The epoch's sums by meter name.
        masked: Number of non-finite steps so far.
        masked_in_row: Number of non-finite steps since the last finite one.
    """

    sums: Mapping[str, float]
    masked: int
    masked_in_row: int

    def mean_since(self, earlier: Mapping[str, float]) -> dict[str, float]:
        """Return averages over the finite steps since an earlier snapshot's sums; NaN if none."""
        steps = self.sums["steps"] - earlier.get("steps", 0.0)
        return {
            name: (total - earlier.get(name, 0.0)) / steps if steps else math.nan
            for name, total in self.sums.items()
            if name != "steps"
        }


def read_device(program: DinoProgram) -> MeterSnapshot:
    """Read meters and counters in one transfer."""
    values = torch.cat([program.meters, program.non_finite]).tolist()
    # NaN means that the device does not have this meter.
    sums = {
        name: total for name, total in zip(METERS, values, strict=False) if not math.isnan(total)
    }
    return MeterSnapshot(sums=sums, masked=int(values[-2]), masked_in_row=int(values[-1]))


@dataclass(frozen=True, kw_only=True)
class LoaderStats:
    """How the images of one process are read: its loader processes and the cores it can use."""

    workers: int
    cores: int

    @classmethod
    def of(cls, workers: int, processes: Processes) -> LoaderStats:
        """Return those of a process that has its share of this host's cores."""
        return cls(workers=workers, cores=max(1, count_cores() // processes.local_world_size))

    def explain(self) -> str:
        """Return why the device may wait for images, and what to do."""
        more = min(self.cores, 2 * self.workers or 4)  # each takes memory, so not all cores at once
        if not self.workers:
            return f"`num_workers` 0 reads them between the steps; try `num_workers` {more}"
        loaders = f"{self.workers} loader process{'es' * (self.workers > 1)}"
        has = f"{loaders} and {self.cores} core{'s' * (self.cores > 1)}"
        smaller = "smaller image files (a shorter side of 256 to 512 pixels)"
        if self.workers < self.cores:
            return f"this process has {has}; try `num_workers` {more}, or {smaller}"
        return (
            f"this process has {has}, so more `num_workers` will not help; "
            f"try {smaller}, tar shards, or more cores"
        )


class Reporter:
    """Turns snapshots into log lines and records; one for the whole run, shown by rank 0 only."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        *,
        prototypes: int,
        iteration: int,
        shown: bool,
        log_to: Sequence[str] = (EVENTS,),
        feeding: LoaderStats | None = None,
    ) -> None:
        """Open the records at `iteration`.

        Args:
            folder: The run's output folder.
            plan: The run's schedules.
            prototypes: K.
            iteration: Where the run starts or continues.
            shown: Whether this process reports.
            log_to: Names of the sinks.
            feeding: How the images are read, to explain why the device waits for them.
        """
        self.plan, self.epoch = plan, iteration // plan.iterations
        if shown:
            logger.info("length: %s", plan.describe(iteration))
        self.log = (
            MetricLog(folder, epoch=self.epoch, iteration=iteration, log_to=log_to, groups=GROUPS)
            if shown
            else None
        )
        self.progress = Progress(
            plan.epochs * plan.iterations, "training", start=iteration, shown=shown
        )
        self.collapse = CollapseWatch(plan, prototypes)
        self.feeding, self.end, self.own_view = feeding, EndEstimate(self.progress), math.nan
        self.begin_window(iteration, {})

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(completed=error is None)

    def begin_window(self, iteration: int, sums: Mapping[str, float]) -> None:
        """Start a new averaging window at `iteration`, where the meters read `sums`."""
        self.iteration, self.sums = iteration, sums
        self.began, self.waited = time.monotonic(), 0.0

    def report(
        self, reading: MeterSnapshot, iteration: int, counters: Mapping[str, float] | None = None
    ) -> None:
        """Log the iterations since the last log line, with the device's own `counters`."""
        means = reading.mean_since(self.sums)
        steps, seconds = iteration - self.iteration, time.monotonic() - self.began
        rate, weight_decay, *_ = self.plan.numbers(iteration - 1)
        timings = {
            "examples/sec": steps * self.plan.global_batch / seconds,
            "iter_time": seconds / steps,
            "data_time": self.waited / steps,
            "data_wait_share": self.waited / seconds,
        }
        self._show(means, timings, rate, iteration, reading.masked)
        self.end.see_line(iteration, timings["iter_time"])
        self.collapse.look(means, iteration)
        self._warn_of_waiting(timings["data_wait_share"])
        self.write(
            {
                **timings,
                **means,
                "lr": rate,
                "wd": weight_decay,
                "non_finite_steps": reading.masked,
                **(counters or {}),
            },
            iteration,
        )
        self.begin_window(iteration, reading.sums)

    def write(self, scalars: Mapping[str, float], iteration: int) -> None:
        """Write numbers to the sinks, given by the reference's tags."""
        if self.log is not None:
            self.log.write_scalars(scalars, iteration)

    def write_pictures(self, pictures: Mapping[str, Jpeg], iteration: int) -> None:
        """Write pictures to the sinks."""
        if self.log is not None:
            self.log.write_images(
                {f"pictures/{name}": jpeg for name, jpeg in pictures.items()}, iteration
            )

    def write_settings(self, recipe: str, settings: Mapping[str, Any]) -> None:
        """Write the run's settings to the sinks."""
        if self.log is not None:
            self.log.write_settings(recipe, settings, self.iteration)

    def report_scores(self, values: Mapping[str, float], iteration: int) -> None:
        """Log the teacher's scores by name; the progress line shows `own_view` from now on."""
        self.own_view = values.get("own_view", self.own_view)
        when = f"at iteration {iteration}" if iteration else "before training"
        told = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        logger.info("scores %s: %s", when, told)
        self.write(values, iteration)

    def end_epoch(self, reading: MeterSnapshot, iteration: int, more: Mapping[str, Any]) -> None:
        """Append the epoch's line to log.txt; the original's keys come first."""
        if self.log is None:
            return
        means = reading.mean_since({})
        rate, weight_decay, *_ = self.plan.numbers(iteration - 1)
        first = {"train_loss": means.pop("loss"), "train_lr": rate, "train_wd": weight_decay}
        rest = {f"train_{name}": value for name, value in means.items()}
        self.log.write_epoch(
            {**first, "epoch": iteration // self.plan.iterations - 1, **rest, **more}
        )

    def close(self, *, completed: bool = True) -> None:
        """Close the progress bar and the records; `completed` is False for a run cut short."""
        self.progress.close()
        if self.log is not None:
            self.log.close(completed=completed)

    def _show(
        self,
        means: Mapping[str, float],
        timings: Mapping[str, float],
        rate: float,
        iteration: int,
        masked: int,
    ) -> None:
        shown = {
            "epoch": f"{(iteration - 1) // self.plan.iterations + 1}/{self.plan.epochs}",
            "loss": f"{means['loss']:.4f}",
            "lr": f"{rate:.3g}",
            **({"own view": f"{self.own_view:.0f}%"} if self.own_view >= 0 else {}),
            "images/s": f"{timings['examples/sec']:.1f}",
            "data wait": f"{timings['data_wait_share']:.0%}",
            **({"skipped steps": str(masked)} if masked else {}),
        }
        self.progress.advance(iteration, shown)

    def _warn_of_waiting(self, share: float) -> None:
        if (
            self.feeding is None
            or self.log is None
            or self.end.lines <= SETTLING_LINES
            or share <= LARGEST_WAIT
        ):
            return
        logger.warning(
            "training waited for images %.0f %% of the time: %s",
            100 * share,
            self.feeding.explain(),
        )
        self.feeding = None  # warn once
