"""`dry_run`: build everything, run two steps on random pixels and report the cost; write nothing.

Shapes: B images of one process and update, V views, C channels, S side.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dino.data.crops import Crops
from dino.data.synthetic import IMAGENET, make_batch
from dino.errors import CheckpointError
from dino.runtime.context import Run
from dino.training.build import build_recipe, build_step, choose_recompute
from dino.training.checks import check_device, check_images, check_settings
from dino.training.config import TrainConfig
from dino.training.flops import count_flops, measure_matmul
from dino.training.plan import build_plan
from dino.training.savings import describe_savings, format_hours
from dino.weights.read import is_name

logger = logging.getLogger(__name__)

# Share of memory that a run may fill; the rest is for fragmentation, libraries, other programs.
USABLE = 0.9


@dataclass(frozen=True, kw_only=True)
class DryRunResult:
    """Measurements of two steps.

    Attributes:
        images_per_second: Over all processes, in the second step; the first one loads and compiles.
        flops: Floating point operations per image, for both networks and the backward pass; a
            multiply-add counts as 2.
        utilization: Rate of those operations relative to large matrix products, 0 to 1.
        shares: Share of the second step's time by phase, 0 to 1.
        memory_peak: Bytes used by one process, or None if the device does not report it.
        memory_total: Bytes of memory on its device, or None.
        memory_image: Bytes that one more image in a batch takes, or None.
        largest_batch: Estimate of the largest `batch_size_per_device` that fits, or None.
        recompute: What the backward pass recomputes.
    """

    images_per_second: float
    flops: float
    utilization: float
    shares: dict[str, float]
    memory_peak: int | None
    memory_total: int | None
    memory_image: float | None
    largest_batch: int | None
    recompute: str


class PhaseClock:
    """Adds up the time spent in each phase, including the device's work."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        """Start stopped; `synchronize` waits for the device."""
        self.synchronize, self.phase, self.began = synchronize, "", 0.0
        self.seconds: dict[str, float] = defaultdict(float)

    def enter(self, phase: str) -> None:
        """End the current phase and begin another; an empty name stops the clock."""
        self.synchronize()
        now = time.perf_counter()
        if self.phase:
            self.seconds[self.phase] += now - self.began
        self.phase, self.began = phase, now


def check_dry_run(config: TrainConfig) -> int:
    """Check what a run would check, except the output folder; check images only if some are named.

    Returns:
        The number of images of an epoch; ImageNet's if none are named.

    Raises:
        DinoError: A setting is wrong; the message says which one and what to do.
    """
    check_settings(config)
    word = config.student.init_from
    if word and not is_name(word) and not Path(word).exists():
        raise CheckpointError(f"`init_from` {word} does not exist", value=word)
    if config.data.data_path is not None:
        return len(check_images(config))
    return config.train_data.data_limit or IMAGENET


def dry_run(config: TrainConfig, run: Run, images: int = IMAGENET) -> DryRunResult:
    """Run two steps (three if they are compiled), log the measurements and return them.

    Args:
        config: The settings of the run.
        run: Device and processes.
        images: Number of images of an epoch, for the duration of the run.

    Raises:
        OptionError: The architecture does not accept the crop sizes or the number of channels.
        DeviceError: The batch does not fit into the device's memory.
    """
    device, world_size = run.device, run.processes.world_size
    before = device.memory_peak() or 0
    check_device(config, run.device)
    parts, clock = build_step(config, run), PhaseClock(device.synchronize)
    parts.program.enter = clock.enter
    batch, plan = draw_batch(config), build_plan(config, iterations=1, world_size=world_size)
    depth = parts.draws.begin(0)
    for _ in range(2 + device.compiles):  # phases compile in the second step
        clock.seconds.clear()
        clock.enter("transfer")
        parts.step(batch, plan.inputs(0, depth))
        clock.enter("")
    seconds, peak = sum(clock.seconds.values()), device.memory_peak()
    fixed = before + count_bytes(parts.student, parts.teacher, parts.optimizer)
    largest, image = estimate_batch(
        peak, device.memory_total(), fixed=fixed, micro_batch=plan.micro_batch
    )
    rate, flops = plan.global_batch / seconds, count_flops(config)
    result = DryRunResult(
        images_per_second=rate,
        flops=flops,
        utilization=rate * flops / (measure_matmul(device) * world_size),
        shares={phase: part / seconds for phase, part in clock.seconds.items()},
        memory_peak=peak,
        memory_total=device.memory_total(),
        memory_image=image,
        largest_batch=largest,
        recompute=choose_recompute(config, device),
    )
    hours = config.run.epochs * images / rate / 3600
    for line in (
        *describe(result, seconds),
        describe_duration(config.run.epochs, images, hours),
        *describe_savings(config, hours, flops=flops, shares=result.shares),
    ):
        logger.info("%s", line)
    return result


def draw_batch(config: TrainConfig) -> Crops:
    """Draw a batch (B, ...) of uniform pixels in host memory, shaped and typed as by the loader."""
    images = config.data.batch_size_per_device * config.run.accumulate_steps
    host = torch.device("cpu")
    batch = make_batch(
        build_recipe(config), images, seed=config.run.seed, device=host, to_device=lambda rows: rows
    )
    if config.train_data.augment_on == "device":
        return batch
    views = (pixels.float().movedim(-1, 2) for pixels in (batch.global_pixels, batch.local_pixels))
    # The step does not augment float pixels.
    return batch._replace(global_pixels=next(views), local_pixels=next(views))


def count_bytes(student: nn.Module, teacher: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of both networks, the student's gradients and the optimizer's state.

    These do not depend on the batch.
    """
    kept = [*student.state_dict().values(), *teacher.state_dict().values()]
    kept += [part for part in student.parameters() if part.requires_grad]
    kept += [
        part
        for state in optimizer.state.values()
        for part in state.values()
        if isinstance(part, Tensor)
    ]
    return sum(part.numel() * part.element_size() for part in kept)


def estimate_batch(
    peak: int | None, total: int | None, *, fixed: int, micro_batch: int
) -> tuple[int | None, float | None]:
    """Return the largest batch that fits and the bytes that each of its images takes.

    Memory is modeled as `fixed` plus a constant per image; a tenth of all memory stays free.

    Args:
        peak: Bytes that a step with `micro_batch` images used, or None if unknown.
        total: Bytes of memory on the device, or None if unknown.
        fixed: Bytes that do not depend on the batch.
        micro_batch: Images per forward pass.
    """
    if peak is None or peak <= fixed:
        return None, None
    image = (peak - fixed) / micro_batch
    return (None if total is None else max(0, int((USABLE * total - fixed) / image))), image


def describe_duration(epochs: int, images: int, hours: float) -> str:
    """Return how long a run takes at the measured rate, if its images arrive in time."""
    text = format_hours(hours)
    return f"duration: {epochs} epochs of {images:,} images take {text} hours at this rate"


def describe(found: DryRunResult, seconds: float) -> list[str]:
    """Return the lines that the user reads; `seconds` is the time of a step."""
    rate = found.images_per_second
    phases = ", ".join(f"{phase} {share:.0%}" for phase, share in found.shares.items())
    lines = [
        f"dry run: {rate:.2f} images/s ({seconds:.3g} s per step), with pixels already in memory",
        f"FLOPs: {found.flops / 1e9:.4g} GFLOP per image, "
        f"{found.flops * rate / 1e12:.3g} TFLOP/s over all processes, "
        f"{found.utilization:.0%} of the rate of large matrix products here",
        f"phases: {phases}",
    ]
    if found.memory_peak is None:
        return [*lines, "memory: this device does not report it"]
    again = f", `recompute` {found.recompute}"
    total = "" if found.memory_total is None else f" of {found.memory_total / 1e9:.1f} GB"
    lines.append(f"peak memory: {found.memory_peak / 1e9:.2f} GB{total} per process{again}")
    if found.largest_batch is not None and found.memory_image is not None:
        image = f"{found.memory_image / 1e6:.3g} MB per image"
        lines.append(f"`batch_size_per_device` {found.largest_batch} should just fit ({image})")
    return lines
