"""Weights cast by block: the same numbers as autocast's own casts, to the bit, and one operator."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dino.devices.casting import cast_together
from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.registry import build_backbone, set_recompute
from dino.verify.measure import StepCounts


def build() -> MultiCrop:
    torch.manual_seed(0)
    backbone = build_backbone("vit_mini", patch_size=8, img_size=32, drop_path_rate=0.0)
    return MultiCrop(backbone, DINOHead(in_dim=96, out_dim=16, hidden_dim=32, bottleneck_dim=8))


def cast(network: MultiCrop) -> MultiCrop:
    cast_together(network.stages)
    return network


def draw() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(count, 3, side, side, generator=generator) for count, side in ((4, 32), (6, 16))
    ]


def run(network: MultiCrop, times: int = 1) -> list[bytes]:
    """Vectors and the gradients of all weights."""
    network.zero_grad()
    for _ in range(times):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, vectors = network(*draw())
        (vectors.float() * torch.arange(8.0)).sum().backward()
    parts = [
        vectors.float(),
        *(weight.grad for weight in network.parameters() if weight.grad is not None),
    ]
    return [part.detach().numpy().tobytes() for part in parts]


@pytest.mark.parametrize("recompute", ["nothing", "activations", "mlp", "blocks"])
@pytest.mark.parametrize("times", [1, 2])
def test_vectors_and_gradients_are_the_same_to_the_bit(recompute: str, times: int) -> None:
    plain, together = build(), cast(build())
    for network in (plain, together):
        set_recompute(network.backbone, recompute)
    expected = run(plain, times)
    assert len(expected) > 40
    assert run(together, times) == expected
    assert run(together, times) == expected, "the weights are back where they were"


def test_each_stage_casts_in_one_operator() -> None:
    network, counts = build(), []
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), StepCounts() as seen:
            network(*draw())
        counts.append(seen.launches.total())
        cast(network)
    layers = [layer for stage in network.stages for layer in stage.modules()]
    weights = sum(len(list(layer.parameters())) for layer in layers if isinstance(layer, nn.Linear))
    assert counts[0] - counts[1] == weights - len(network.stages) == 30 - 4


def test_without_autocast_and_after_an_error_the_weights_are_the_networks_own() -> None:
    network = cast(build())
    own = dict(network.named_parameters())
    with torch.no_grad():
        expected = build()(*draw())[1]
        assert torch.equal(network(*draw())[1], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError):
        network.backbone.blocks[0](torch.zeros(2, 5, 7))
    assert dict(network.named_parameters()).keys() == own.keys()
    assert all(part is own[name] for name, part in network.named_parameters())
    assert all(isinstance(part, nn.Parameter) for part in network.parameters())


def test_a_copy_of_a_network_casts_its_own_weights() -> None:
    network = cast(build())
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert run(network) == run(build())
    assert run(other) != run(network)
