"""From options to networks, loader and program."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dino.cli.options import parse
from dino.data.sources import open_training_source
from dino.devices.cpu import CpuDevice
from dino.errors import DataError
from dino.training.build import build_loader, build_networks, build_program, describe_network
from dino.training.config import TrainConfig
from tests.running import TINY, make_images


def options_of(*words: object) -> TrainConfig:
    return parse(TrainConfig, [*TINY, *map(str, words)])


def run_of(world_size: int = 1) -> SimpleNamespace:
    """A CPU and the numbers of a process group without one."""
    processes = SimpleNamespace(
        rank=0,
        world_size=world_size,
        local_world_size=world_size,
        all_reduce_mean_async=lambda tensor: lambda: tensor,
        read_from_first=lambda name, value: value,
    )
    return SimpleNamespace(device=CpuDevice("fp32"), processes=processes)


def test_student_and_teacher_start_equal_and_only_one_learns() -> None:
    student, teacher = build_networks(options_of("--drop_path_rate", 0.3), run_of())
    ours, theirs = student.state_dict(), teacher.state_dict()
    assert ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["head.last_layer.weight_g"]
    rates = [
        [block.drop_path.rate for block in network.backbone.blocks]
        for network in (student, teacher)
    ]
    assert rates == [pytest.approx([0.0, 0.15, 0.3]), [0.0, 0.0, 0.0]]


def test_the_seed_alone_decides_the_weights() -> None:
    first, other, again = (
        build_networks(options_of("--seed", seed), run_of())[0].head.mlp[0].weight
        for seed in (0, 1, 0)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_free_norms_are_the_students_alone() -> None:
    student, teacher = build_networks(options_of("--norm_last_layer", "false"), run_of())
    assert (
        student.head.last_layer.weight_g.requires_grad
        and not teacher.head.last_layer.weight_g.requires_grad
    )


def test_batch_norm_is_synchronized_among_processes_only() -> None:
    words = ("--use_bn_in_head", "true")
    alone = [
        type(part).__name__ for part in build_networks(options_of(*words), run_of())[0].modules()
    ]
    among = [
        type(part).__name__
        for part in build_networks(options_of(*words), run_of(world_size=2))[0].modules()
    ]
    assert alone.count("BatchNorm1d") == 2 and among.count("BatchNorm1d") == 0
    assert len(alone) == len(among)


def test_the_loader_gives_the_crops_that_the_flags_describe(tmp_path: Path) -> None:
    source = open_training_source(str(make_images(tmp_path / "images", 10)))
    options = options_of("--accumulate_steps", 2, "--local_crops_number", 3, "--in_chans", 1)
    loader = build_loader(options, source, run_of())
    [batch] = loader.read(0)
    assert len(loader) == 1
    assert batch.global_pixels.shape == (8, 2, 16, 16, 1) and batch.local_pixels.shape == (
        8,
        3,
        8,
        8,
        1,
    )
    with pytest.raises(DataError, match="holds 10 images, less than one global batch of 16"):
        build_loader(options, source, run_of(world_size=2))


def test_the_program_has_the_flags_numbers() -> None:
    options = options_of("--clip_grad", 0.5, "--in_chans", 1)
    program = build_program(options, *build_networks(options, run_of()), run_of())
    assert program.clip_grad == 0.5
    assert program.center.shape == (1, 16) and not program.center.any()
    assert len(program.normalization.mean) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            (),
            "vit_mini with patches of 8, 0.244 M parameters, and 4.92 M parameters in its head;"
            " 2 global crops of 16, 1 local crops of 8 pixels; a checkpoint takes about 82.7 MB",
        ),
        (
            ("--arch", "resnet18", "--local_crops_number", 0, "--optimizer", "sgd"),
            "resnet18, 11.2 M parameters, and 5.78 M parameters in its head;"
            " 2 global crops of 16 pixels; a checkpoint takes about 203 MB",
        ),
    ],
)
def test_the_network_and_its_crops_are_said(words: tuple[object, ...], expected: str) -> None:
    config = options_of(*words)
    student, _ = build_networks(config, run_of())
    assert describe_network(config, student) == expected
