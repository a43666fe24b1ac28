"""What a step draws: the same at the same place of a run, other at any other, and a seed only where
it is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dino.cli.options import parse
from dino.devices.cpu import CpuDevice
from dino.models.depth import draw_depth
from dino.models.multicrop import MultiCrop
from dino.models.registry import build_backbone
from dino.training.config import TrainConfig
from dino.training.draws import StepDraws, draws_by_itself
from tests.running import TINY


class Seeded(CpuDevice):
    """Remembers how it was seeded."""

    def __init__(self) -> None:
        super().__init__("fp32")
        self.seeds: list[int] = []

    def seed(self, value: int) -> None:
        self.seeds.append(value)


def draws_of(backbone: nn.Module, *words: object, rank: int = 0) -> StepDraws:
    options = parse(TrainConfig, [*TINY, *map(str, words)])
    return StepDraws(options, MultiCrop(backbone, nn.Identity()), Seeded(), rank)


def vit(rate: float = 0.4) -> nn.Module:
    return build_backbone("vit_mini", patch_size=8, img_size=16, drop_path_rate=rate)


def test_depth_is_drawn_by_seed_iteration_rank_and_micro_batch() -> None:
    words = (
        "--seed",
        7,
        "--accumulate_steps",
        3,
        "--batch_size_per_device",
        4,
        "--local_crops_number",
        5,
    )
    draws = draws_of(vit(), *words, rank=2)
    depth = draws.begin(11)
    assert depth is not None and depth.shape == (3, 6, 4 * 7) and depth.dtype == torch.float32
    for place in range(3):
        expected = draw_depth((0.0, 0.2, 0.4), 28, (7, 11, 2, place))
        np.testing.assert_allclose(depth[place].numpy(), expected, rtol=1e-6)
    assert torch.equal(depth, draws.begin(11)), "nothing of it depends on what was drawn before"
    assert draws.device.seeds == []


def test_without_stochastic_depth_nothing_is_drawn() -> None:
    draws = draws_of(vit(0.0))
    assert draws.begin(0) is None and draws.device.seeds == []


def test_a_network_that_draws_by_itself_is_seeded_anew_at_every_step() -> None:
    draws = draws_of(nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), "--seed", 3, rank=1)
    assert [draws.begin(place) for place in (5, 6, 5)] == [None] * 3
    first, second, again = draws.device.seeds
    assert first == again != second
    assert first == int(np.random.SeedSequence((3, 5, 1)).generate_state(1)[0])


class LoaderConfig(nn.Module):
    """A network whose path depends on a value, so that it cannot be looked at without one."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * 2 if images.sum() > 0 else images


class Functional(nn.Module):
    """Dropout that no module shows."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(images, self.rate, self.training)


NETWORKS = {
    "resnet18": (lambda: build_backbone("resnet18"), False),
    "vgg with dropout": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)), True),
    "dropout of rate 0": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.0)), False),
    "torchvision's stochastic depth": (lambda: build_backbone("efficientnet_b0"), True),
    "timm": (lambda: build_backbone("timm:resnet10t"), False),
    "timm's stochastic depth": (lambda: build_backbone("timm:resnet10t", drop_path_rate=0.1), True),
    "functional": (lambda: Functional(0.1), True),
    "functional of rate 0": (lambda: Functional(0.0), False),
    "not to be looked at": (LoaderConfig, True),
    "ours": (vit, False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_draw_are_found_and_not_changed(name: str) -> None:
    build, draws = NETWORKS[name]
    network = build().eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state, options = torch.get_rng_state(), parse(TrainConfig, [*TINY, "--global_crops_size", "32"])
    assert draws_by_itself(network, options) is draws
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert not any(part.training for part in network.modules())


def test_batch_norm_over_processes_is_not_asked_to_talk_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dino.devices import batch_norm

    monkeypatch.setattr(batch_norm, "all_reduce", None)
    network = CpuDevice("fp32").synchronize_batch_norm(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    )
    assert not draws_by_itself(network, parse(TrainConfig, [*TINY]))
