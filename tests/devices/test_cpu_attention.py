"""Attention in bfloat16: as exact as torch's own, its backward pass in float32, and only where it fits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dino.devices.cpu import CpuDevice

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


def draw(tokens=37, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, tokens, 16, generator=generator, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("tokens", [2, 37, 197])
def test_bf16_runs_backwards_in_float32_and_stays_near_it(tokens):
    wide, narrow = draw(tokens), draw(tokens)
    F.scaled_dot_product_attention(*wide).square().sum().backward()
    with CpuDevice("bf16").autocast():
        mixed = F.scaled_dot_product_attention(*narrow)
    with Watch() as watch:
        mixed.float().square().sum().backward()
    assert mixed.dtype == torch.bfloat16
    assert watch.types == [{torch.float32}]
    for one, other in zip(narrow, wide, strict=True):
        assert (one.grad - other.grad).norm() <= 0.02 * other.grad.norm() + 1e-6


def test_nothing_larger_than_tokens_waits_for_the_backward_pass():
    kept = []
    with (
        CpuDevice("bf16").autocast(),
        torch.autograd.graph.saved_tensors_hooks(lambda part: kept.append(part) or part, lambda part: part),
    ):
        F.scaled_dot_product_attention(*draw(197))
    assert max(part.numel() for part in kept) == 3 * 2 * 197 * 16


@pytest.mark.parametrize(
    "options", [{"is_causal": True}, {"scale": 0.5}, {"attn_mask": torch.ones(37, 37, dtype=torch.bool).tril()}]
)
def test_anything_else_is_left_to_torch(options):
    with CpuDevice("bf16").autocast():
        mixed = F.scaled_dot_product_attention(*draw(), **options)
    expected = F.scaled_dot_product_attention(*draw(), **options)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), expected, atol=0.05, rtol=0.05)


def test_float32_is_left_to_torch():
    with CpuDevice("fp32").autocast(), Watch() as watch:
        F.scaled_dot_product_attention(*draw()).sum().backward()
    assert watch.types == [{torch.float32}]
