"""A collapse is named once, with its cause, and not before it can be true."""

import logging
import math

import pytest
import torch

from dino.cli.options import parse
from dino.training.collapse import CollapseWatch, diagnose_collapse, find_settled
from dino.training.config import TrainConfig
from dino.training.loss import compute_targets
from dino.training.plan import build_plan

HEALTHY = {"entropy": 2.0, "divergence": 1.0}
UNIFORM = {"entropy": math.log(64), "divergence": 0.0}
CONSTANT = {"entropy": 1.0, "divergence": 0.0}


def plan_of(*words, iterations=10):
    config = parse(TrainConfig, ["--epochs", "30", "--momentum_teacher", "0.9", *words])
    return build_plan(config, iterations=iterations, world_size=1)


def measures(logits, temperature=0.04, center=None):
    center = torch.zeros(1, logits.shape[1]) if center is None else center
    targets = compute_targets(logits, center, torch.tensor(temperature))
    return {
        "entropy": float(targets.entropy),
        "divergence": float(targets.divergence),
        "prototypes": logits.shape[1],
    }


@pytest.mark.parametrize("prototypes", [64, 1024])
def test_uniform_outputs_are_named(prototypes):
    torch.manual_seed(0)
    text = diagnose_collapse(**measures(1e-3 * torch.randn(32, prototypes)))
    assert text.startswith("uniform collapse") and "`teacher_temp`" in text


@pytest.mark.parametrize("prototypes", [64, 1024])
def test_constant_outputs_are_named(prototypes):
    torch.manual_seed(0)
    same = torch.randn(1, prototypes).expand(32, -1) + 1e-5 * torch.randn(32, prototypes)
    text = diagnose_collapse(**measures(same))
    assert text.startswith("constant collapse") and "`momentum_teacher`" in text


@pytest.mark.parametrize("prototypes", [64, 1024])
@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
def test_healthy_outputs_are_not_named(prototypes, scale):
    torch.manual_seed(0)
    assert diagnose_collapse(**measures(scale * torch.randn(32, prototypes))) is None


def test_no_measure_is_no_diagnosis():
    assert diagnose_collapse(entropy=math.nan, divergence=math.nan, prototypes=64) is None


@pytest.mark.parametrize("prototypes", [16, 65536])
@pytest.mark.parametrize(
    ("entropy", "divergence", "expected"),
    [(0.985, 0.01, "uniform"), (0.975, 0.01, None), (0.5, 0.0009, "constant"), (0.5, 0.0011, None)],
)
def test_collapse_starts_at_98_percent_of_the_entropy_and_ends_at_a_thousandth_of_divergence(
    prototypes, entropy, divergence, expected
):
    most = math.log(prototypes)
    text = diagnose_collapse(
        entropy=entropy * most, divergence=divergence * most, prototypes=prototypes
    )
    assert text is None if expected is None else text.startswith(f"{expected} collapse")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--warmup_epochs", "3", "--freeze_last_layer", "1"), 29 + 10),
        (("--warmup_epochs", "0", "--freeze_last_layer", "5"), 50 + 11),
        (("--warmup_epochs", "0", "--freeze_last_layer", "0"), 10),
        (("--momentum_teacher", "1", "--warmup_epochs", "0"), 300),
    ],
)
def test_a_run_has_settled_once_the_teacher_forgot_the_frozen_and_slow_start(words, expected):
    assert find_settled(plan_of(*words)) == expected


def test_a_run_whose_last_layer_stays_frozen_never_settles():
    assert find_settled(plan_of("--freeze_last_layer", "99")) >= 300


def test_each_kind_is_named_once_and_not_before_the_run_has_settled(caplog):
    watch = CollapseWatch(plan_of("--warmup_epochs", "0", "--freeze_last_layer", "0"), 64)
    kinds = [UNIFORM] * 11 + [HEALTHY, UNIFORM, CONSTANT, HEALTHY, CONSTANT, UNIFORM]
    caplog.clear()  # other loggers may be at work already
    with caplog.at_level(logging.WARNING):
        for iteration, kind in enumerate(kinds):
            watch.look(kind, iteration)
            assert bool(caplog.records) == (iteration > 11)
    named = [record.getMessage().split(":")[0] for record in caplog.records]
    assert named == ["uniform collapse", "constant collapse"]
    assert all("because" in record.getMessage() for record in caplog.records)
