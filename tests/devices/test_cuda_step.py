"""Training steps on a real GPU give the CPU's losses, whatever saves time or memory, and the host
reads nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

from dino.cli.options import parse
from dino.devices.cuda_graph import WARM_UP
from dino.runtime.context import open_run
from dino.training.build import build_networks, build_program
from dino.training.config import TrainConfig
from dino.training.dry_run import draw_batch
from dino.training.optim import build_optimizer
from dino.training.plan import build_plan
from dino.training.step import DinoProgram
from dino.training.step_values import METERS

if not torch.cuda.is_available():
    pytest.skip("no GPU here", allow_module_level=True)

SMALL = "--data_path demo --arch vit_mini --patch_size 8 --global_crops_size 32 --local_crops_size 16 --out_dim 64"
SMALL += " --local_crops_number 2 --batch_size_per_device 4 --drop_path_rate 0 --recompute nothing"
# 5e-4 for this batch: losses move
SMALL += " --epochs 1 --warmup_epochs 0 --freeze_last_layer 0 --lr 0.03"
STEPS = 4
GRAPH_STEPS = WARM_UP + 4
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")  # of the host; a graph is one


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a GPU turns these for good."""
    for name in ("benchmark", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))


@contextlib.contextmanager
def open_steps(words: str) -> Iterator[tuple[DinoProgram, Callable[[], None]]]:
    """A program and what takes its next step, always on the same numbers."""
    options = parse(TrainConfig, [*SMALL.split(), *words.split()])
    with open_run(options.device, options.launch, precision=options.precision) as run:
        student, teacher = build_networks(options, run)
        optimizer = build_optimizer("adamw", student, fused=run.device.fuses_updates)
        program = build_program(options, student, teacher, run)
        step = run.device.compile_train(program, optimizer, 1)
        batch, inputs = (
            draw_batch(options),
            build_plan(options, iterations=STEPS, world_size=1).inputs(0),
        )
        yield program, lambda: step(batch, inputs)


def compute_losses(words: str, steps: int = STEPS) -> list[float]:
    """The loss of each step; a step that a loss scale masked has none."""
    with open_steps(words) as (program, step):
        sums = []
        for _ in range(steps):
            step()
            sums.append([program.meters[METERS.index(name)].item() for name in ("steps", "loss")])
    pairs = zip([[0.0, 0.0], *sums], sums, strict=False)
    return [after[1] - before[1] for before, after in pairs if after[0] > before[0]]


@pytest.fixture(scope="module")
def expected() -> list[float]:
    losses = compute_losses("--device cpu --precision fp32")
    assert len(losses) == STEPS and abs(losses[-1] - losses[0]) > 1e-3 * losses[0]
    return losses


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ("--precision fp32", 1e-4),
        ("--precision fp32 --compile", 1e-4),
        ("--precision fp32 --recompute activations", 1e-4),
        ("--precision fp32 --recompute blocks", 1e-4),
        ("--precision bf16", 0.02),
        ("--precision bf16 --compile", 0.02),
    ],
)
def test_losses_are_the_cpus(words: str, limit: float, expected: list[float]) -> None:
    assert compute_losses(f"--device cuda {words}") == pytest.approx(expected, rel=limit)


def test_in_fp16_the_first_loss_scale_may_mask_steps_and_the_others_are_the_cpus(
    expected: list[float],
) -> None:
    losses = compute_losses("--device cuda --precision fp16")
    assert losses
    assert losses == pytest.approx(expected[: len(losses)], rel=0.02)


@pytest.mark.parametrize("words", ["--recompute activations", "--recompute blocks", "--compile"])
def test_what_saves_memory_or_time_changes_no_loss(words: str) -> None:
    plain = compute_losses("--device cuda --precision fp32")
    assert compute_losses(f"--device cuda --precision fp32 {words}") == pytest.approx(
        plain, rel=1e-5
    )


@contextlib.contextmanager
def forbidding_reads() -> Iterator[None]:
    """Inside, a wait of the host for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_host_reads_nothing_in_a_step(precision: str) -> None:
    with open_steps(f"--device cuda --precision {precision}") as (_, step):
        step()  # places constants
        step()
        with forbidding_reads():
            step()


@pytest.mark.parametrize("more", ["", "--compile", "--recompute blocks"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("bf16", 1e-3)])
def test_a_replayed_graph_gives_the_eager_steps_losses(
    precision: str, limit: float, more: str
) -> None:
    words = f"--device cuda --precision {precision} {more}"
    eager = compute_losses(words, GRAPH_STEPS)
    assert len(eager) == GRAPH_STEPS
    assert compute_losses(f"{words} --cuda_graph", GRAPH_STEPS) == pytest.approx(eager, rel=limit)


def count_launches(words: str) -> int:
    """What the host launches in one step after the first."""
    with open_steps(f"--device cuda --precision bf16 {words}") as (_, step):
        for _ in range(GRAPH_STEPS):
            step()
        torch.cuda.synchronize()
        with torch.profiler.profile() as events:
            step()
            torch.cuda.synchronize()
    found = {event.key: event.count for event in events.key_averages()}
    return sum(count for name, count in found.items() if name.startswith(LAUNCHES))


def test_compiled_steps_launch_less_and_a_graph_next_to_nothing() -> None:
    eager, compiled = count_launches(""), count_launches("--compile")
    assert 0 < compiled < eager
    for more in ("", "--compile"):
        assert 0 < count_launches(f"{more} --cuda_graph") <= 100


def test_the_host_reads_nothing_when_a_graph_is_replayed() -> None:
    with open_steps("--device cuda --precision bf16 --cuda_graph") as (_, step):
        for _ in range(GRAPH_STEPS):
            step()
        with forbidding_reads():
            step()
