"""The head computes the original's numbers and gradients, and can be copied at any time."""

import copy

import pytest
import torch
from torch.nn.utils import parametrizations

from dino.models.head import DINOHead, PrototypeLayer

pytestmark = pytest.mark.usefixtures("device")

TAGS = {
    "norm": {},
    "free": {"norm_last_layer": False},
    "bn": {"use_bn": True},
    "one": {"layers": 1},
}


def build(**more):
    return DINOHead(in_dim=48, out_dim=256, hidden_dim=64, bottleneck_dim=32, **more)


@pytest.mark.parametrize("tag", TAGS)
def test_logits_and_gradients_are_those_of_the_original(tag, golden, draw, relative_error):
    arrays = golden("head")
    head, prefix = build(**TAGS[tag]), f"{tag}/w/"
    weights = {
        key.removeprefix(prefix): torch.as_tensor(arrays[key])
        for key in arrays
        if key.startswith(prefix)
    }
    assert set(weights) == set(head.state_dict())
    head.load_state_dict(weights)
    features = draw(6, 8, 48).requires_grad_()
    logits = head.train()(features)
    logits.square().sum().backward()
    assert relative_error(logits.detach(), arrays[f"{tag}/y"]) <= 1e-5
    assert relative_error(features.grad, arrays[f"{tag}/dx"]) <= 1e-5
    assert relative_error(head.last_layer.weight_v.grad, arrays[f"{tag}/dv"]) <= 1e-5


def test_prototypes_equal_weight_norm_of_torch(relative_error):
    torch.manual_seed(0)
    ours = PrototypeLayer(16, 40, trainable_norm=True)
    torch.nn.init.uniform_(ours.weight_g, 0.5, 2.0)
    theirs = parametrizations.weight_norm(torch.nn.Linear(16, 40, bias=False))
    theirs.parametrizations.weight.original0.data.copy_(ours.weight_g.data)
    theirs.parametrizations.weight.original1.data.copy_(ours.weight_v.data)
    vectors = torch.randn(5, 16)
    for layer in (ours, theirs):
        layer(vectors).pow(3).sum().backward()
    assert relative_error(ours(vectors).detach(), theirs(vectors).detach()) <= 1e-6
    assert relative_error(ours.weight_g.grad, theirs.parametrizations.weight.original0.grad) <= 1e-5
    assert relative_error(ours.weight_v.grad, theirs.parametrizations.weight.original1.grad) <= 1e-5


def test_names_are_those_that_checkpoints_hold():
    names = ["mlp.0", "mlp.2", "mlp.4"]
    assert set(build().state_dict()) == {
        *(f"{name}.{kind}" for name in names for kind in ("weight", "bias")),
        *("last_layer.weight_g", "last_layer.weight_v"),
    }


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_prototype_lengths_start_at_one_and_learn_only_when_asked(norm_last_layer):
    layer = build(norm_last_layer=norm_last_layer).last_layer
    assert torch.equal(layer.weight_g, torch.ones(256, 1))
    assert layer.weight_g.requires_grad is not norm_last_layer
    assert layer.weight_v.requires_grad


def test_logits_are_cosines_at_the_start():
    torch.manual_seed(0)
    with torch.no_grad():
        logits = build()(100 * torch.randn(32, 48))
    assert float(logits.abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize("tag", TAGS)
def test_a_head_is_deep_copied_after_forward_and_backward(tag):
    torch.manual_seed(0)
    head, features = build(**TAGS[tag]).train(), torch.randn(8, 48)
    head(features).square().sum().backward()
    clone = copy.deepcopy(head)
    assert torch.equal(clone.eval()(features), head.eval()(features))
    clone.last_layer.weight_v.data.zero_()
    assert head.last_layer.weight_v.data.any()


def test_batch_norm_sits_in_every_hidden_layer_and_only_there():
    kinds = [type(part).__name__ for part in build(use_bn=True).mlp]
    assert kinds == ["Linear", "BatchNorm1d", "GELU"] * 2 + ["Linear"]


def test_a_zero_feature_gives_finite_logits():
    assert torch.isfinite(build()(torch.zeros(2, 48))).all()
