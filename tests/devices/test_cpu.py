"""The CPU: batch norm over processes, batches in parts, copies for the host."""

import copy
import ctypes
import os
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from dino.devices import batch_norm, cpu
from dino.devices.base import split_batch
from dino.devices.batch_norm import AllReduceBatchNorm, run_parts, synchronize
from dino.devices.cpu import CpuDevice
from dino.devices.cuda import FusedBatchNorm
from dino.errors import DeviceError

ROWS = (2, 4)  # images of each process; they need not be equal
CASES = {"vectors": (5,), "images": (5, 3, 4), "far from zero": (5, 8, 8), "bf16": (5, 20, 20)}
LIMITS = {"vectors": 1e-5, "images": 1e-5, "far from zero": 1e-3, "bf16": 1e-2}


class Pair(NamedTuple):
    """A batch of two fields."""

    pixels: Tensor
    labels: Tensor


@pytest.fixture
def device():
    return CpuDevice("fp32")


def build_norm(case):
    torch.manual_seed(1)
    norm = (nn.BatchNorm1d if len(CASES[case]) == 1 else nn.BatchNorm2d)(5, eps=1e-4, momentum=0.2)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    return norm


def draw_batch(case):
    """Inputs of all processes, joined, and the weights of their sum."""
    torch.manual_seed(2)
    shape = (sum(ROWS), *CASES[case])
    inputs, weights = (
        torch.randn(shape) + (30.0 if case == "far from zero" else 0.0),
        torch.randn(shape),
    )
    return inputs.to(torch.bfloat16 if case == "bf16" else torch.float32), weights


def run_norm(norm, inputs, weights):
    """Outputs, gradients and statistics of one training step; autocast hands inputs over in half
    precision."""
    inputs = inputs.clone().requires_grad_()
    outputs = norm(inputs)
    (outputs * weights).sum().backward()
    return {
        "outputs": outputs.detach(),
        "input gradient": inputs.grad,
        "weight gradient": norm.weight.grad,
        "bias gradient": norm.bias.grad,
        **{name: value.clone() for name, value in norm.named_buffers()},
    }


def run_process(rank, folder):
    """One of two processes: its rows of every case; the results go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mine = slice(0, ROWS[0]) if rank == 0 else slice(ROWS[0], None)
    results = {}
    for case in CASES:
        inputs, weights = draw_batch(case)
        network = CpuDevice("fp32").synchronize_batch_norm(nn.Sequential(build_norm(case)))
        try:
            results[case] = run_norm(network[0], inputs[mine], weights[mine])
        except RuntimeError as error:
            results[case] = {"error": str(error)}
    torch.save(results, os.path.join(folder, f"{rank}.pth"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """What both processes computed, by case."""
    folder = str(tmp_path_factory.mktemp("processes"))
    multiprocessing.spawn(run_process, args=(folder,), nprocs=2)
    return [torch.load(os.path.join(folder, f"{rank}.pth"), weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_batch_norm_over_two_processes_equals_torchs_on_the_joined_batch(
    case, joined, relative_error
):
    expected = run_norm(build_norm(case), *draw_batch(case))
    first, second = (results[case] for results in joined)
    assert "error" not in first, first["error"]
    assert first["outputs"].dtype == expected["outputs"].dtype
    limit = LIMITS[case]
    for name in ("outputs", "input gradient"):
        assert (
            relative_error(torch.cat([first[name], second[name]]).float(), expected[name].float())
            <= limit
        ), name
    for name in ("weight gradient", "bias gradient"):  # data parallelism adds them up
        assert relative_error(first[name] + second[name], expected[name]) <= limit, name
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[name], second[name]), name
        assert relative_error(first[name], expected[name]) <= limit, name


def test_every_batch_norm_of_a_network_is_replaced_and_nothing_else(device):
    network = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm2d(2), nn.LayerNorm(4))
    )
    before = network.state_dict()
    replaced = device.synchronize_batch_norm(network)
    kinds = [type(part).__name__ for part in replaced.modules() if not list(part.children())]
    assert kinds == ["Linear", "AllReduceBatchNorm", "AllReduceBatchNorm", "LayerNorm"]
    after = replaced.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )


def test_a_batch_norm_of_its_own_is_replaced_too(device):
    assert isinstance(device.synchronize_batch_norm(nn.BatchNorm1d(3)), AllReduceBatchNorm)


def test_synchronized_batch_norm_equals_torchs_in_eval_mode(device):
    norm = build_norm("images")
    inputs = draw_batch("images")[0]
    adopted = device.synchronize_batch_norm(nn.Sequential(norm.eval()))
    assert not adopted[0].training
    assert torch.equal(adopted(inputs), norm(inputs))


@pytest.mark.parametrize("training", [False, True])
def test_a_batch_norm_of_timm_keeps_its_activation(device, training, monkeypatch):
    monkeypatch.setattr(batch_norm, "all_reduce", lambda tensor: tensor)
    network = nn.Sequential(BatchNormAct2d(5, act_layer=nn.GELU)).train(training)
    nn.init.normal_(network[0].bias)
    inputs, expected = torch.randn(4, 5, 3, 3), copy.deepcopy(network)
    torch.testing.assert_close(device.synchronize_batch_norm(network)(inputs), expected(inputs))
    theirs, ours = expected.state_dict(), network.state_dict()
    assert theirs.keys() == ours.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name])


def test_a_batch_norm_on_a_gpu_keeps_timms_activation_too():
    norm = synchronize(nn.Sequential(BatchNormAct2d(5, act_layer=nn.GELU)), FusedBatchNorm)[0]
    assert isinstance(norm, nn.SyncBatchNorm) and isinstance(norm.act, nn.GELU)
    inputs = torch.randn(4, 5)
    assert torch.equal(run_parts(norm, inputs), nn.functional.gelu(inputs))


def test_a_frozen_batch_norm_stays_frozen(device):
    network = nn.Sequential(nn.BatchNorm1d(3)).requires_grad_(False)
    assert not any(
        parameter.requires_grad for parameter in device.synchronize_batch_norm(network).parameters()
    )


def test_copies_for_the_host_share_no_memory_and_carry_no_gradient(device):
    weight = torch.ones(2, requires_grad=True)
    state = {"a": weight, "b": [weight, {"c": weight * 2}], "d": (1, "text", None), 5: 0.5}
    copied = device.to_host(state)
    with torch.no_grad():
        weight.zero_()
    assert copied["a"].tolist() == [1, 1] and copied["b"][0].tolist() == [1, 1]
    assert copied["b"][1]["c"].tolist() == [2, 2] and not copied["b"][1]["c"].requires_grad
    assert not copied["a"].requires_grad
    assert (copied["d"], copied[5]) == ([1, "text", None], 0.5)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_batch_is_cut_into_equal_parts_in_order(parts):
    batch = Pair(torch.arange(24).reshape(8, 3), torch.arange(8))
    pieces = list(split_batch(batch, parts))
    assert [type(piece) for piece in pieces] == [Pair] * parts
    assert {len(piece.labels) for piece in pieces} == {8 // parts}
    for field in ("pixels", "labels"):
        assert torch.equal(
            torch.cat([getattr(piece, field) for piece in pieces]), getattr(batch, field)
        )


def test_placing_keeps_the_struct_and_the_values(device):
    batch = Pair(torch.arange(6).reshape(2, 3), torch.arange(2))
    placed = device.to_device(batch)
    assert type(placed) is Pair
    assert all(torch.equal(a, b) for a, b in zip(placed, batch, strict=True))


def test_evaluation_runs_in_eval_mode_and_without_gradients(device):
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9)).train()
    infer = device.compile_eval(module)
    inputs = torch.randn(4, 3)
    assert torch.equal(infer(inputs), module[0](inputs))
    assert not infer(inputs).requires_grad


def test_a_seed_restarts_the_random_numbers(device):
    device.seed(5)
    first = torch.randn(3)
    device.seed(5)
    assert torch.equal(torch.randn(3), first)


def test_bf16_computes_products_in_bf16_and_keeps_fp32_weights():
    device, layer = CpuDevice("bf16"), nn.Linear(3, 3)
    with device.autocast():
        assert layer(torch.randn(2, 3)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    with CpuDevice("fp32").autocast():
        assert layer(torch.randn(2, 3)).dtype == torch.float32


def test_fp16_is_refused_and_no_loss_is_scaled(device):
    with pytest.raises(DeviceError, match="`precision` fp16 needs `device` cuda"):
        CpuDevice("fp16")
    assert device.build_scaler() is None


@pytest.mark.parametrize(("granted", "asked"), [(1, {-3: 2**27, -1: 2**30}), (0, {-3: 2**27})])
def test_training_asks_malloc_to_keep_what_is_freed_all_or_nothing(granted, asked, monkeypatch):
    seen = {}
    library = SimpleNamespace(mallopt=lambda option, value: seen.update({option: value}) or granted)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    CpuDevice("fp32").compile_train(None, None, 1)
    assert seen == asked


def test_a_c_library_without_that_setting_is_left_as_it_is(monkeypatch):
    opened = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: opened.append(name) or SimpleNamespace())
    cpu.keep_freed_memory()
    assert opened == [None]
