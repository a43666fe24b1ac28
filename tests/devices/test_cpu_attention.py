"""Attention in bfloat16: as exact as torch's own, its backward pass in float32, and only where it
fits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dino.devices.cpu import CpuDevice
from dino.devices.cpu_attention import restore_attention, widen_backward
from dino.devices.op_lists import OpLists

BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Watch(TorchDispatchMode):
    """Types in which flash attention runs backwards."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func == BACKWARD:
            self.types.append({part.dtype for part in args if isinstance(part, torch.Tensor)})
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def replaced():
    widen_backward()
    yield
    restore_attention()


def draw(tokens=37, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(3, 2, tokens, 16, generator=generator, requires_grad=True) for _ in range(3)
    ]


def run_backward(inputs):
    """Types of the backward pass."""
    with CpuDevice("bf16").autocast():
        mixed = F.scaled_dot_product_attention(*inputs)
    with Watch() as watch:
        mixed.float().square().sum().backward()
    assert mixed.dtype == torch.bfloat16 and len(watch.types) == 1
    return watch.types[0]


@pytest.mark.parametrize("tokens", [2, 37, 197])
def test_bf16_runs_backwards_in_float32_and_stays_near_it(tokens):
    wide, narrow = draw(tokens), draw(tokens)
    F.scaled_dot_product_attention(*wide).square().sum().backward()
    assert run_backward(narrow) == {torch.float32}
    for one, other in zip(narrow, wide, strict=True):
        assert (one.grad - other.grad).norm() <= 0.02 * other.grad.norm() + 1e-6


def test_nothing_larger_than_tokens_waits_for_the_backward_pass():
    kept = []
    with (
        CpuDevice("bf16").autocast(),
        torch.autograd.graph.saved_tensors_hooks(
            lambda part: kept.append(part) or part, lambda part: part
        ),
    ):
        F.scaled_dot_product_attention(*draw(197))
    assert max(part.numel() for part in kept) == 3 * 2 * 197 * 16


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"scale": 0.5},
        {"scale": 0.0},
        {"attn_mask": torch.ones(37, 37, dtype=torch.bool).tril()},
    ],
)
def test_other_settings_are_left_to_torch(options):
    with CpuDevice("bf16").autocast():
        mixed = F.scaled_dot_product_attention(*draw(), **options)
    expected = F.scaled_dot_product_attention(*draw(), **options)
    assert mixed.dtype == torch.bfloat16 and "WideBackward" not in mixed.grad_fn.name()
    torch.testing.assert_close(mixed.float(), expected, atol=0.05, rtol=0.05)


SHAPES = {
    "another stride": [(2, 2, 8, 5)] * 3,
    "one batch of keys": [(4, 2, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8)],
    "one batch of queries": [(1, 2, 5, 8), (4, 2, 5, 8), (4, 2, 5, 8)],
    "no keys": [(2, 2, 5, 8), (2, 2, 0, 8), (2, 2, 0, 8)],
    "no tokens": [(2, 2, 0, 8)] * 3,
    "no images": [(0, 2, 5, 8)] * 3,
    "three dimensions": [(2, 5, 8)] * 3,
    "a value of another width": [(2, 2, 5, 8), (2, 2, 5, 8), (2, 2, 5, 4)],
    "keys of another length": [(2, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)],
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_any_shapes_give_what_torch_gives(shapes):
    """The kernel itself checks nothing: it would read past the end, or end the process."""
    torch.manual_seed(0)
    given = [torch.randn(shape, requires_grad=True) for shape in shapes]
    if shapes is SHAPES["another stride"]:
        given = [part.transpose(-1, -2) for part in given]
    with CpuDevice("bf16").autocast():
        mixed = F.scaled_dot_product_attention(*given)
    expected = F.scaled_dot_product_attention(*given)
    torch.testing.assert_close(mixed.float(), expected, atol=0.05, rtol=0.05)


def test_heads_that_do_not_fit_are_torchs_error():
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    with CpuDevice("bf16").autocast(), pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(query, key, value)


def test_float64_stays_as_it_is():
    with CpuDevice("bf16").autocast():
        assert (
            F.scaled_dot_product_attention(*(part.double() for part in draw())).dtype
            == torch.float64
        )


def test_float32_is_left_to_torch():
    with CpuDevice("fp32").autocast(), Watch() as watch:
        F.scaled_dot_product_attention(*draw()).sum().backward()
    assert watch.types == [{torch.float32}]


def test_a_device_leaves_torchs_own_until_it_trains():
    restore_attention()
    device = CpuDevice("bf16")
    assert torch.bfloat16 in run_backward(draw())
    device.compile_train(None, None, 1)
    assert run_backward(draw()) == {torch.float32}


def test_op_lists_take_its_place():
    device = CpuDevice("fp32", OpLists(bf16=("mm",), fp32=("scaled_dot_product_attention",)))
    with device.autocast():
        assert (
            F.scaled_dot_product_attention(*(part.bfloat16() for part in draw())).dtype
            == torch.float32
        )
    device.casting.close()
