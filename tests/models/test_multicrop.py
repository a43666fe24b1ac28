"""Several resolutions in one call give what one call a resolution gives, in the given order."""

import pytest
import torch

from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.vit import VisionTransformer

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture
def network():
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1, heads=2)
    return MultiCrop(
        backbone, DINOHead(in_dim=24, out_dim=16, hidden_dim=20, bottleneck_dim=8)
    ).eval()


def test_views_come_back_in_their_order(network):
    large, small = torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        features, vectors = network(large, small)
        expected = torch.cat([network.backbone(large), network.backbone(small)])
    assert (features.shape, vectors.shape) == ((10, 24), (10, 8))
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(network.head.last_layer(vectors), network.head(expected))


def test_one_resolution_is_enough(network):
    with torch.no_grad():
        assert network(torch.randn(4, 3, 32, 32))[1].shape == (4, 8)


def test_each_layer_runs_once_for_all_resolutions(network):
    calls = []
    for name in ("backbone", "backbone.blocks.0.mlp", "head.mlp"):
        part = network.get_submodule(name)
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    network(torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16))
    assert calls == ["backbone.blocks.0.mlp", "backbone", "head.mlp"]


def test_other_networks_run_once_a_resolution():
    calls, backbone = [], torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network = MultiCrop(backbone, DINOHead(in_dim=3, out_dim=16, hidden_dim=20, bottleneck_dim=8))
    backbone.register_forward_hook(lambda *_: calls.append("backbone"))
    network(torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16))
    assert calls == ["backbone", "backbone"]


def test_parameters_are_named_backbone_and_head(network):
    assert {name.split(".")[0] for name in network.state_dict()} == {"backbone", "head"}


def test_each_resolution_gets_the_depth_of_its_own_images():
    torch.manual_seed(0)
    backbone = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, heads=2, drop_path_rate=0.5
    )
    network = MultiCrop(
        backbone, DINOHead(in_dim=24, out_dim=16, hidden_dim=20, bottleneck_dim=8)
    ).train()
    large, small = torch.randn(2, 3, 32, 32), torch.randn(3, 3, 16, 16)
    depth = torch.tensor([[1.0] * 5] * 2 + [[0, 2, 0, 2, 2.0], [2, 2, 0, 0, 2.0]])
    with torch.no_grad():
        features, _ = network(large, small, depth=depth)
        expected = torch.cat([backbone(large, depth[:, :2]), backbone(small, depth[:, 2:])])
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
