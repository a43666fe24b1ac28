"""`--dry_run`: counted operations, drawn batches, timed phases, the batch that fits; and nothing is
written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dino.cli.options import parse
from dino.data.sources import open_training_source
from dino.devices.cpu import CpuDevice
from dino.errors import CheckpointError, DataError, OptionError
from dino.training.build import build_loader, build_networks
from dino.training.config import TrainConfig
from dino.training.dry_run import (
    PhaseClock,
    check_dry_run,
    count_bytes,
    describe_duration,
    draw_batch,
    dry_run,
    estimate_batch,
)
from dino.training.optim import build_optimizer
from tests import hpu_simulator
from tests.running import TINY, make_images, on_simulated_card, train, train_pair
from tests.training.test_build import run_of

PHASES = ["transfer", "augmentation", "teacher", "student", "loss", "backward", "update"]


def options_of(*words: object) -> TrainConfig:
    return parse(TrainConfig, [*TINY, *map(str, words)])


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_drawn_batch_is_shaped_as_the_loaders(place: str, tmp_path: Path) -> None:
    words = ("--accumulate_steps", 2, "--local_crops_number", 3, "--augment_on", place)
    options = options_of(*words, "--data_path", make_images(tmp_path, 8))
    loaded = next(
        build_loader(options, open_training_source(options.data.data_path), run_of()).read(0)
    )
    drawn = draw_batch(options)
    assert [(part.shape, part.dtype) for part in drawn] == [
        (part.shape, part.dtype) for part in loaded
    ]
    assert drawn.global_pixels.float().std() > 60  # uniform: 74
    assert (drawn.global_parameters[:, 0, 3] == 1).all()  # the first view is always blurred


def test_without_local_views_the_batch_has_none() -> None:
    drawn = draw_batch(options_of("--local_crops_number", 0))
    assert drawn.local_pixels.shape == (4, 0, 8, 8, 3) and len(drawn.local_parameters[0]) == 0


def test_bytes_are_those_of_networks_gradients_and_moments() -> None:
    options = options_of()
    student, teacher = build_networks(options, run_of())
    optimizer = build_optimizer("adamw", student)
    weights = sum(part.numel() for part in student.parameters())
    learnt = sum(part.numel() for part in student.parameters() if part.requires_grad)
    assert count_bytes(student, teacher, optimizer) == pytest.approx(
        4 * (2 * weights + 3 * learnt), rel=1e-3
    )


@given(
    fixed=st.integers(1, 10**11),
    image=st.floats(10**3, 10**9),
    batch=st.integers(1, 1024),
    total=st.integers(10**9, 10**12),
)
def test_the_largest_batch_leaves_a_tenth_free(
    fixed: int, image: float, batch: int, total: int
) -> None:
    peak = int(fixed + batch * image) + 1
    largest, found = estimate_batch(peak, total, fixed=fixed, micro_batch=batch)
    assert largest is not None and found == pytest.approx((peak - fixed) / batch)
    assert largest == 0 or fixed + largest * found <= 0.9 * total * (1 + 1e-9)
    assert fixed + (largest + 1) * found > 0.9 * total * (1 - 1e-9)


def test_memory_that_is_not_known_gives_no_batch() -> None:
    assert estimate_batch(None, 100, fixed=1, micro_batch=2) == (None, None)
    assert estimate_batch(5, None, fixed=1, micro_batch=2) == (None, 2.0)
    assert estimate_batch(5, 100, fixed=7, micro_batch=2) == (None, None)


def test_the_clock_gives_each_phase_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times, waits = iter([1.0, 3.0, 4.0, 10.0]), []
    monkeypatch.setattr("dino.training.dry_run.time.perf_counter", lambda: next(times))
    clock = PhaseClock(lambda: waits.append(1))
    for phase in ("a", "b", "a", ""):
        clock.enter(phase)
    assert clock.seconds == {"a": 8.0, "b": 1.0} and len(waits) == 4


def test_two_steps_show_rate_phases_and_memory(caplog: pytest.LogCaptureFixture) -> None:
    found = dry_run(options_of("--accumulate_steps", 2), run_of())
    assert list(found.shares) == PHASES and sum(found.shares.values()) == pytest.approx(1.0)
    assert (
        found.images_per_second > 0
        and found.memory_peak is not None
        and found.memory_total is not None
    )
    assert found.memory_peak < found.memory_total


def test_the_duration_is_that_of_the_images_of_all_epochs(tmp_path: Path) -> None:
    assert describe_duration(100, 1_281_167, 100 * 1_281_167 / 1000 / 3600) == (
        "duration: 100 epochs of 1,281,167 images take 35.6 hours at this rate"
    )
    assert check_dry_run(options_of("--dry_run")) == 1_281_167
    assert check_dry_run(options_of("--dry_run", "--data_limit", 300)) == 300
    images = make_images(tmp_path, 12)
    assert check_dry_run(options_of("--dry_run", "--data_path", images)) == 12


def test_a_host_tells_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CpuDevice("fp32")
    before, held = device.memory_peak(), torch.ones(2**26)
    assert device.memory_peak() >= before and held.numel()
    monkeypatch.setattr("dino.devices.cpu.MEMORY_LIMIT", tmp_path / "memory.max")
    whole = device.memory_total()
    for text, wanted in (("max\n", whole), ("123456\n", 123456)):
        (tmp_path / "memory.max").write_text(text)
        assert device.memory_total() == wanted


CARD = pytest.param(
    ("--device", "hpu"),
    marks=pytest.mark.skipif(bool(hpu_simulator.why_unavailable()), reason="no simulated hpu"),
)


@pytest.mark.parametrize("mode", [("--device", "cpu"), CARD], ids=["cpu", "hpu"])
def test_the_command_says_what_a_run_would_cost_and_writes_nothing(
    mode: tuple[str, ...], tmp_path: Path
) -> None:
    prepare = on_simulated_card if "hpu" in mode else None
    result = train(tmp_path, "--dry_run", *mode, "--output_dir", tmp_path / "run", prepare=prepare)
    assert result.code == 0, result.text
    for line in (
        r"dry run: [\d.]+ images/s",
        r"GFLOP per image, .* \d+% of the rate of large",
        r"duration: \d+ epochs of [\d,]+ images take [\d,.]+ hours at this rate",
        r"peak memory: [\d.]+ GB of [\d.]+ GB",
    ):
        assert re.search(line, result.text), result.text
    assert all(f"{phase} " in result.text for phase in PHASES)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(bool(hpu_simulator.why_unavailable()), reason="no simulated hpu")
def test_a_lazy_card_says_so_too(tmp_path: Path) -> None:
    result = train(
        tmp_path, "--dry_run", "--device", "hpu", "--lazy_mode", "true", prepare=on_simulated_card
    )
    assert result.code == 0 and "--batch_size_per_device" in result.text, result.text


def test_two_processes_speak_once(tmp_path: Path) -> None:
    first, second = train_pair(tmp_path, "--dry_run")
    assert (first.code, second.code) == (0, 0), (first.text, second.text)
    assert "dry run: " in first.text and "dry run: " not in second.text


def test_what_a_run_would_refuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="`arch` vit_smal is unknown"):
        check_dry_run(options_of("--dry_run", "--arch", "vit_smal"))
    with pytest.raises(DataError, match="nowhere does not exist"):
        check_dry_run(options_of("--dry_run", "--data_path", "nowhere"))
    with pytest.raises(CheckpointError, match=r"`init_from` gone\.pth does not exist"):
        check_dry_run(options_of("--dry_run", "--init_from", "gone.pth"))
    check_dry_run(options_of("--dry_run", "--init_from", "hub:dino_vits16"))
    check_dry_run(options_of("--dry_run", "--data_path", make_images(tmp_path / "images", 4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
