"""`dino align`: train on two devices and report how far apart the results are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import set_up_logging
from dino.devices.config import DeviceConfig
from dino.errors import CheckFailed
from dino.training.config import AlignConfig

if TYPE_CHECKING:
    from dino.training.alignment import Difference

logger = logging.getLogger(__name__)

ABOUT = Help(
    summary=(
        "Train a few steps on two devices from the same weights and pixels; print the differences."
        "\n\nAccepts every flag of `dino pretrain`. "
        "The exit code is 1 if a difference is larger than --tolerance."
    ),
    example="dino align --device ipu --reference cpu",
)


def write_table(rows: Sequence[Difference]) -> Iterator[str]:
    """Yield the lines of a table, one per tensor."""
    width = max(len(row.name) for row in rows)
    yield f"{'':9} {'tensor':{width}} {'max':>9} {'mean':>9}"
    yield from (f"{row.what:9} {row.name:{width}} {row.most:9.2e} {row.mean:9.2e}" for row in rows)


def align(config: AlignConfig) -> list[Difference]:
    """Train on both devices and compare.

    Raises:
        DinoError: A device is not available, or a layout is impossible.
    """
    from dino.data.synthetic import make_batch
    from dino.devices import open_device
    from dino.devices.cpu import CpuDevice
    from dino.runtime.context import Run
    from dino.runtime.distributed import Processes
    from dino.runtime.launch import Launch
    from dino.training.alignment import compare, trace_steps
    from dino.training.build import build_recipe
    from dino.training.plan import build_plan

    device = open_device(config.device, precision=config.precision, compiled=config.compiled)
    reference = open_device(DeviceConfig(device=config.align.reference))
    micro_batches = device.count_micro_batches(config.run.accumulate_steps)
    steps, host = config.align.steps, CpuDevice("fp32")
    size, recipe = config.data.batch_size_per_device * micro_batches, build_recipe(config)
    batches = [
        make_batch(
            recipe,
            size,
            seed=config.run.seed + step,
            device=host.torch_device,
            to_device=host.to_device,
        )
        for step in range(steps)
    ]
    plan = build_plan(
        config, iterations=-(-steps // config.run.epochs), world_size=1, device=device
    )
    logger.info(
        "%s against %s: %d steps of %d images", device.describe(), reference.describe(), steps, size
    )
    ours, theirs = (
        Run(device=each, processes=Processes(Launch(), each.collective_backend, "env://"))
        for each in (device, reference)
    )
    return list(
        compare(*(trace_steps(config, run, plan, batches, tested=device) for run in (ours, theirs)))
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the devices and print the table.

    Raises:
        CheckFailed: A difference is larger than `--tolerance`.
    """
    config = parse(AlignConfig, argv, ABOUT)

    from dino.runtime.metrics import check_target, write_result
    from dino.training.checks import check_settings

    set_up_logging()
    check_settings(config)
    check_target(config.report.json)
    rows = align(config)
    for line in write_table(rows):
        logger.info("%s", line)
    worst = max(rows, key=lambda row: row.most)
    logger.info("largest difference: %.2e (%s %s)", worst.most, worst.what, worst.name)
    write_result(config.report.json, {f"{row.what} {row.name}".strip(): row.most for row in rows})
    if not worst.most <= config.align.tolerance:
        raise CheckFailed(
            f"{worst.what} {worst.name} differs by {worst.most:.2e}, more than "
            f"{config.align.tolerance:g}"
        )
