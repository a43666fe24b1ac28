"""A run's numbers before it starts: scaled rate, shortened warm-up, frozen epochs."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from dino.cli.options import parse
from dino.errors import OptionError
from dino.training.config import TrainConfig
from dino.training.plan import build_plan, choose_warmup
from dino.training.schedules import compute_cosine


def plan_of(*words, iterations=5, world_size=1):
    return build_plan(parse(TrainConfig, list(words)), iterations=iterations, world_size=world_size)


def test_the_learning_rate_scales_with_the_global_batch_of_processes_and_accumulation():
    words = [
        "--lr",
        "0.002",
        "--batch_size_per_device",
        "16",
        "--accumulate_steps",
        "4",
        "--warmup_epochs",
        "0",
    ]
    plan = plan_of(*words, world_size=2)
    assert plan.global_batch == 128
    assert plan.learning_rate[0] == pytest.approx(0.002 * 128 / 256)


def test_two_processes_with_half_the_batch_have_the_plan_of_one():
    one, two = (
        plan_of("--batch_size_per_device", "64"),
        plan_of("--batch_size_per_device", "32", world_size=2),
    )
    for name in ("learning_rate", "weight_decay", "momentum", "temperature"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_the_minimum_learning_rate_is_not_scaled():
    plan = plan_of(
        "--batch_size_per_device", "1024", "--min_lr", "0.001", "--epochs", "2000", iterations=1
    )
    assert plan.learning_rate[-1] == pytest.approx(0.001, rel=1e-3)


def test_every_schedule_covers_the_run():
    plan = plan_of("--epochs", "12", "--warmup_teacher_temp_epochs", "3", iterations=7)
    assert plan.learning_rate.shape == plan.weight_decay.shape == plan.momentum.shape == (84,)
    assert plan.temperature.shape == (12,)
    np.testing.assert_allclose(
        plan.weight_decay, compute_cosine(base=0.04, final=0.4, iterations=84)
    )
    np.testing.assert_allclose(plan.momentum, compute_cosine(base=0.996, final=1.0, iterations=84))
    expected = compute_cosine(base=0.0005 * 32 / 256, final=1e-6, iterations=84, warmup=70)
    np.testing.assert_allclose(plan.learning_rate, expected)


def test_the_inputs_of_an_iteration_are_plain_numbers_in_the_steps_order():
    words = ["--epochs", "4", "--warmup_epochs", "1", "--freeze_last_layer", "2"]
    plan = plan_of(*words, "--warmup_teacher_temp_epochs", "2", "--teacher_temp", "0.07")
    for iteration in range(20):
        numbers = plan.numbers(iteration)
        assert all(type(number) is float for number in numbers)
        assert numbers == (
            plan.learning_rate[iteration],
            plan.weight_decay[iteration],
            plan.momentum[iteration],
            [0.04, 0.07, 0.07, 0.07][iteration // 5],
            [0.0, 0.0, 1.0, 1.0][iteration // 5],
        )


@pytest.mark.parametrize(
    ("epochs", "iterations", "warmup"), [(10, 5, 50), (9, 5, 4), (1, 40, 4), (1, 3, 0), (20, 5, 50)]
)
def test_a_default_warm_up_longer_than_the_run_becomes_a_tenth_of_it(
    epochs, iterations, warmup, caplog
):
    caplog.set_level(logging.INFO)
    options = parse(TrainConfig, ["--epochs", str(epochs)])
    assert choose_warmup(options, iterations) == warmup
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (1 if epochs < 10 else 0)
    assert all("`warmup_epochs` 10" in line and f"`epochs` {epochs}" in line for line in lines)


def test_a_temperature_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(OptionError, match="30 epochs does not fit into a run of 5"):
        plan_of("--epochs", "5", "--warmup_teacher_temp_epochs", "30")


def test_rates_are_refreshed_every_so_many_iterations_and_at_each_epoch():
    words = ("--epochs", "2", "--warmup_epochs", "0", "--set_freq", "3")
    plan, every = plan_of(*words, iterations=5), plan_of(*words[:4], iterations=5)
    used = [plan.numbers(iteration)[:3] for iteration in range(10)]
    assert used == [every.numbers(iteration)[:3] for iteration in (0, 0, 0, 3, 3, 5, 5, 5, 8, 8)]


def test_the_line_says_batch_and_rate(caplog):
    caplog.set_level(logging.INFO)
    plan_of("--batch_size_per_device", "16", "--accumulate_steps", "4", world_size=2)
    assert (
        "global batch 128 images per update: peak learning rate 0.00025 = `lr` 0.0005 * 128 / 256"
        in caplog.text
    )


def test_a_device_that_updates_several_times_a_call_has_the_rate_of_one_update():
    device = SimpleNamespace(count_micro_batches=lambda steps: 6 * steps, updates_per_step=3)
    options = parse(TrainConfig, ["--batch_size_per_device", "4", "--warmup_epochs", "0"])
    plan = build_plan(options, iterations=5, world_size=2, device=device)
    assert plan.global_batch == 48
    assert plan.learning_rate[0] == pytest.approx(0.0005 * 16 / 256)


def test_the_length_of_a_run_is_said():
    plan = plan_of("--epochs", "3", "--warmup_epochs", "1")
    said = plan.describe(10)
    assert said == (
        f"3 epochs of {plan.iterations} iterations, {3 * plan.iterations} in all, from 10 on;"
        f" {plan.global_batch} images each"
    )
