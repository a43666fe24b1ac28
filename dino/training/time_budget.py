"""`preset` auto with `hours`: measure the speed of this machine, then choose epochs and network."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Collection, Generator, Iterator

from dino.config import change
from dino.data.crops import Crops
from dino.data.image_source import ImageSource
from dino.data.loaders import TrainLoader
from dino.data.synthetic import SyntheticLoader
from dino.runtime.context import Run
from dino.training.build import build_loader, build_step
from dino.training.checks import check_settings
from dino.training.choices import measure_scale, resolve
from dino.training.config import TrainConfig
from dino.training.plan import build_plan
from dino.training.small_data import FEW_IMAGES, Choice, choose_small_network

logger = logging.getLogger(__name__)

WARM, TIMED = 2, 5  # updates before the clock starts (loaders start, graphs compile), and after
USABLE = 0.9  # share of the time for updates; the rest is for saving and scores
LEAST_EPOCHS = 10  # below this, a smaller network learns more in the same time
MOST_EPOCHS = 800  # of the paper's longest runs


def fit_hours(
    config: TrainConfig, given: Collection[str], run: Run, source: ImageSource
) -> tuple[TrainConfig, dict[str, str]]:
    """Choose the epochs, and what depends on them; do nothing without `hours`.

    Args:
        config: The run's settings, from `choose_settings`.
        given: Names of the settings that were set explicitly.
        run: Device and processes.
        source: The images.

    Returns:
        As `choose_settings`.

    Raises:
        DinoError: An image cannot be read, or the device cannot train.
    """
    if config.run.hours is None:
        return config, {}
    logger.info("`hours` %g: measuring the speed of a few updates", config.run.hours)
    for network in list_networks(config, given, source):
        values = {name: choice.value for name, choice in network.items()}
        wanted = change(config, values)
        candidate = resolve(wanted, {*given, *values}, source)[0]
        check_settings(candidate)
        with _quietly():
            rate = measure_rate(candidate, run, source)
        epochs, reason = choose_epochs(candidate, config.run.hours, rate, len(source))
        if epochs >= LEAST_EPOCHS:
            break
    reasons = {name: f"auto: {choice.reason}" for name, choice in network.items()}
    reasons["epochs"] = f"auto: {reason}"
    return resolve(change(wanted, {"epochs": epochs}), {*given, *values}, source, reasons)


def list_networks(
    config: TrainConfig, given: Collection[str], source: ImageSource
) -> list[dict[str, Choice]]:
    """Return what to measure, beyond the usual choices: nothing, then a small network.

    Where images are few, where weights are given, or an architecture, there is only the first.
    """
    scale = measure_scale(config, given, source)
    if len(source) <= FEW_IMAGES or scale.side is None or scale.start or scale.network:
        return [{}]
    small = choose_small_network(scale.side, "a larger network would make too few epochs")
    return [{}, {name: choice for name, choice in small.items() if name not in given}]


def measure_rate(config: TrainConfig, run: Run, source: ImageSource) -> float:
    """Return the images/s of the run, over all processes, with loading.

    Raises:
        DinoError: An image cannot be read, or the device cannot train.
    """
    parts, loader, device = build_step(config, run), build_loader(config, source, run), run.device
    plan = build_plan(
        config, iterations=len(loader), world_size=run.processes.world_size, device=device
    )
    warm, began = WARM + device.compiles, 0.0
    with contextlib.closing(_read_batches(loader)) as batches:
        for index, batch in enumerate(itertools.islice(batches, warm + TIMED)):
            if index == warm:
                device.synchronize()
                began = time.monotonic()
            parts.step(batch, plan.inputs(0, parts.draws.begin(0)))
        device.synchronize()
    rate = TIMED * plan.global_batch / (time.monotonic() - began)
    return float(run.processes.read_from_first("measured speed", str(rate)))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Log only warnings: the run itself says what it is built of."""
    package = logging.getLogger("dino")
    before = package.level
    package.setLevel(max(before, logging.WARNING))
    try:
        yield
    finally:
        package.setLevel(before)


def _read_batches(loader: TrainLoader | SyntheticLoader) -> Generator[Crops, None, None]:
    """Yield batches of epoch after epoch."""
    for epoch in itertools.count():
        yield from loader.read(epoch, 0)


def choose_epochs(config: TrainConfig, hours: float, rate: float, images: int) -> tuple[int, str]:
    """Return the epochs that fit into the hours at `rate` images/s, and the reason."""
    fitting = int(USABLE * hours * 3600 * rate / images)
    arch = config.backbone.chosen_arch
    reason = f"{hours:g} hours, {rate:.1f} images/s measured with {arch}"
    if fitting < 1:
        return 1, f"{reason}; one epoch takes {images / rate / 3600:.3g}"
    return min(fitting, MOST_EPOCHS), reason
