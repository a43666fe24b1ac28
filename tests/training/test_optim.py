"""The update rules equal torch's and the original's; what is masked does not move by a bit."""

import copy
import math

import pytest
import torch
from torch import nn

from dino import checkpoint
from dino.devices.cpu import CpuDevice
from dino.errors import CheckpointError, OptionError
from dino.training.clipping import clip_gradients
from dino.training.optim import (
    LARS,
    OPTIMIZERS,
    UpdateInputs,
    build_optimizer,
    group_parameters,
)

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(5, 7), (7,), (3, 3, 3, 3), (1,)]
NAMES = pytest.mark.parametrize("name", [*OPTIMIZERS, "fused adamw"])
ON, OFF = 1.0, 0.0


class Network(nn.Module):
    """Matrices, vectors, a frozen parameter and a last layer of both kinds."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.token = nn.Parameter(torch.randn(1, 1, 7))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.last_layer = nn.Linear(7, 4)


def build_network(seed=0):
    torch.manual_seed(seed)
    return Network()


def inputs(rate=0.01, decay=0.1, keep=ON, keep_last=None):
    last = keep if keep_last is None else keep_last
    return UpdateInputs(
        *(torch.tensor(value, dtype=torch.float32) for value in (rate, decay, keep, last))
    )


def fill_gradients(model, seed, value=None):
    """Equal gradients for every network with the same seed; or one number everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            drawn = torch.randn(parameter.shape, generator=generator, device="cpu").to(
                parameter.device
            )
            parameter.grad = drawn if value is None else torch.full_like(drawn, value)


def train(model, optimizer, steps, **more):
    for step in steps:
        fill_gradients(model, step)
        optimizer.step(inputs(**more))


def bits(model, optimizer, only=""):
    """Everything an update may change, as raw bytes."""
    found = {}
    for name, parameter in model.named_parameters():
        if only in name:
            found[name] = parameter.detach().cpu().numpy().tobytes()
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = value.cpu().numpy().tobytes()
    return found


def build_rule(name, model):
    """An optimizer by its name; `fused` where the device has torch's kernel."""
    here = torch.get_default_device().type in ("cpu", "cuda")
    return build_optimizer(
        name.removeprefix("fused "), model, fused=here and name.startswith("fused ")
    )


def torch_groups(model):
    """The original's get_params_groups (its utils.py), in its own words."""
    regularized, others = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith(".bias") or len(parameter.shape) == 1:
            others.append(parameter)
        else:
            regularized.append(parameter)
    return [{"params": regularized}, {"params": others, "weight_decay": 0.0}]


def build_torch(name, model):
    if "adamw" in name:
        return torch.optim.AdamW(torch_groups(model))
    return torch.optim.SGD(torch_groups(model), lr=0, momentum=0.9)


def train_torch(model, optimizer, steps, rate=0.01, decay=0.1, freeze_last=False):
    for step in steps:
        fill_gradients(model, step)
        if freeze_last:
            for name, parameter in model.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None
        for place, group in enumerate(optimizer.param_groups):
            group["lr"] = rate
            if place == 0:
                group["weight_decay"] = decay
        optimizer.step()


def worst_error(model, other, relative_error):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(relative_error(ours.detach(), theirs.detach()) for ours, theirs in pairs)


def test_groups_are_the_originals_in_its_order():
    model = build_network()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = group_parameters(model)
    assert [[names[p] for p in group["params"]] for group in groups] == [
        ["token", "body.weight", "last_layer.weight"],
        ["body.bias", "norm.weight", "norm.bias", "last_layer.bias"],
    ]
    assert [group["decayed"] for group in groups] == [True, False]
    assert [group["last_layer"] for group in groups] == [[2], [3]]
    assert [[id(p) for p in g["params"]] for g in groups] == [
        [id(p) for p in g["params"]] for g in torch_groups(model)
    ]


@pytest.mark.parametrize("name", ["adamw", "fused adamw", "sgd"])
def test_ten_steps_equal_torchs_optimizer(name, relative_error):
    ours, theirs = build_network(), build_network()
    optimizer, reference = build_rule(name, ours), build_torch(name, theirs)
    for step in range(10):
        rate, decay = 0.01 * (1 + step), 0.04 + 0.03 * step
        train(ours, optimizer, [step], rate=rate, decay=decay)
        train_torch(theirs, reference, [step], rate=rate, decay=decay)
    assert worst_error(ours, theirs, relative_error) <= 1e-6


@pytest.mark.parametrize("name", ["adamw", "fused adamw", "sgd"])
def test_a_last_layer_frozen_at_first_starts_as_if_its_first_step_were_new(name, relative_error):
    ours, theirs = build_network(), build_network()
    optimizer, reference = build_rule(name, ours), build_torch(name, theirs)
    train(ours, optimizer, range(4), keep_last=OFF)
    train_torch(theirs, reference, range(4), freeze_last=True)
    train(ours, optimizer, range(4, 10))
    train_torch(theirs, reference, range(4, 10))
    assert worst_error(ours, theirs, relative_error) <= 1e-6
    if "adamw" in name:
        steps = {
            n: float(optimizer.state[p]["step"])
            for n, p in ours.named_parameters()
            if p.requires_grad
        }
        assert {value for n, value in steps.items() if "last_layer" in n} == {6.0}
        assert {value for n, value in steps.items() if "last_layer" not in n} == {10.0}


@NAMES
def test_a_frozen_last_layer_keeps_weights_moments_and_step_count(name):
    model = build_network()
    optimizer = build_rule(name, model)
    train(model, optimizer, range(3))
    last, body = bits(model, optimizer, "last_layer"), bits(model, optimizer, "body")
    train(model, optimizer, range(3, 6), keep_last=OFF)
    assert bits(model, optimizer, "last_layer") == last
    assert all(
        value != body[key]
        for key, value in bits(model, optimizer, "body").items()
        if "step" not in key
    )


@NAMES
def test_a_fresh_frozen_last_layer_keeps_its_zero_state(name):
    model = build_network()
    optimizer = build_rule(name, model)
    before = bits(model, optimizer, "last_layer")
    train(model, optimizer, range(3), keep_last=OFF)
    assert bits(model, optimizer, "last_layer") == before


@NAMES
@pytest.mark.parametrize("clip", [3.0, 0.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, 3e38, None])
def test_a_masked_step_changes_no_bit_whatever_the_gradients(name, clip, bad):
    model = build_network()
    optimizer = build_rule(name, model)
    train(model, optimizer, range(3))
    before = bits(model, optimizer)
    fill_gradients(model, 3, bad)
    clip_gradients(model.parameters(), clip)
    optimizer.step(inputs(keep=OFF))
    assert bits(model, optimizer) == before


@NAMES
def test_training_goes_on_after_a_masked_step_as_if_it_had_not_been(name):
    one, other = build_network(), build_network()
    optimizers = [build_rule(name, model) for model in (one, other)]
    train(one, optimizers[0], range(3))
    fill_gradients(one, 99, math.nan)
    clip_gradients(one.parameters(), 3.0)
    optimizers[0].step(inputs(keep=OFF))
    train(one, optimizers[0], range(3, 6))
    train(other, optimizers[1], range(6))
    assert bits(one, optimizers[0]) == bits(other, optimizers[1])


@NAMES
def test_state_goes_through_a_file_and_continues_to_the_bit(name, tmp_path):
    model = build_network()
    optimizer = build_rule(name, model)
    train(model, optimizer, range(3), keep_last=OFF)
    checkpoint.save_file(tmp_path / "a.pth", {"optimizer": optimizer.state_dict()})
    resumed = copy.deepcopy(model)
    again = build_rule(name, resumed)
    again.load_state_dict(checkpoint.load_file(tmp_path / "a.pth")["optimizer"])
    train(model, optimizer, range(3, 6))
    train(resumed, again, range(3, 6))
    assert bits(resumed, again) == bits(model, optimizer)


@NAMES
def test_loading_does_not_share_memory_with_the_source(name):
    model = build_network()
    optimizer = build_rule(name, model)
    train(model, optimizer, range(3))
    other = copy.deepcopy(model)
    again = build_rule(name, other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = bits(model, optimizer)
    train(other, again, range(3, 5))
    assert bits(model, optimizer) == before


@pytest.mark.parametrize("name", ["adamw", "fused adamw", "sgd"])
@pytest.mark.parametrize(
    "frozen", [False, True], ids=["trained last layer", "last layer frozen so far"]
)
def test_the_state_of_torchs_optimizer_is_continued(name, frozen, relative_error):
    theirs = build_network()
    reference = build_torch(name, theirs)
    train_torch(theirs, reference, range(4), freeze_last=frozen)
    ours = copy.deepcopy(theirs)
    optimizer = build_rule(name, ours)
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    train(ours, optimizer, range(4, 8))
    train_torch(theirs, reference, range(4, 8))
    assert worst_error(ours, theirs, relative_error) <= 1e-6


def test_torch_reads_our_adamw_state(relative_error):
    ours = build_network()
    optimizer = build_optimizer("adamw", ours)
    train(ours, optimizer, range(4))
    theirs = copy.deepcopy(ours)
    reference = build_torch("adamw", theirs)
    saved = CpuDevice("fp32").to_host(optimizer.state_dict())  # as it is before it is written
    groups = [
        {**own, "params": kept["params"]}
        for own, kept in zip(
            reference.state_dict()["param_groups"], saved["param_groups"], strict=True
        )
    ]
    reference.load_state_dict({"state": saved["state"], "param_groups": groups})
    train(ours, optimizer, range(4, 8))
    train_torch(theirs, reference, range(4, 8))
    assert worst_error(ours, theirs, relative_error) <= 1e-6


@NAMES
def test_state_of_another_grouping_is_refused(name):
    model = build_network()
    optimizer = build_rule(name, model)
    with pytest.raises(CheckpointError, match=r"must have groups of \[\d, \d\] parameters"):
        optimizer.load_state_dict(
            {"state": {}, "param_groups": optimizer.state_dict()["param_groups"][:1]}
        )


@NAMES
def test_a_parameter_without_gradient_counts_as_zero_gradient(name):
    one, other = build_network(), build_network()
    for model in (one, other):
        fill_gradients(model, 0)
    one.body.weight.grad, other.body.weight.grad = None, torch.zeros_like(other.body.weight)
    optimizers = [build_rule(name, model) for model in (one, other)]
    for optimizer in optimizers:
        optimizer.step(inputs())
    assert bits(one, optimizers[0]) == bits(other, optimizers[1])


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    with pytest.raises(
        OptionError, match=r"`optimizer` must be one of adamw, sgd, lars \(got adam\)"
    ):
        build_optimizer("adam", build_network())


def golden_parameters(draw):
    return [nn.Parameter(draw(40 + place, *shape)) for place, shape in enumerate(SHAPES)]


def test_lars_gives_the_parameters_of_the_original(golden, draw, relative_error):
    arrays, parameters = golden("optim"), golden_parameters(draw)
    groups = [
        {"params": [parameters[place] for place in places], "last_layer": [], "decayed": decayed}
        for places, decayed in (((0, 2), True), ((1, 3), False))
    ]
    optimizer = LARS(groups)
    for step in range(4):
        for place, parameter in enumerate(parameters):
            parameter.grad = draw(60 + 10 * step + place, *parameter.shape)
        optimizer.step(inputs(rate=0.3, decay=0.04))
        for place, parameter in enumerate(parameters):
            assert relative_error(parameter.detach(), arrays[f"lars/{step}/p{place}"]) <= 1e-5


def test_lars_takes_a_zero_parameter_and_a_zero_gradient():
    model = build_network()
    optimizer = build_optimizer("lars", model)
    with torch.no_grad():
        model.body.weight.zero_()
    fill_gradients(model, 0)
    model.token.grad.zero_()
    optimizer.step(inputs(decay=0.0))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.body.weight.any()
