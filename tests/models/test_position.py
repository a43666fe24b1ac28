"""A scaled position embedding is the original's, whatever computes it: in any number format, kept
or made anew."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dino.models.position import compute_weights, scale_position
from dino.models.vit import VisionTransformer

SIZES = [(96, 96), (16, 16), (480, 320), (32, 512), (230, 224), (768, 1024)]


def interpolate(embedding, height, width, patch):
    """Bicubic, as the original calls it (interpolate_pos_encoding)."""
    side = math.isqrt(embedding.shape[1] - 1)
    grid = embedding[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((height // patch + 0.1) / side, (width // patch + 0.1) / side)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([embedding[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_product_is_the_interpolation_and_so_is_its_gradient(size):
    embedding = torch.randn(1, 197, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for compute in (interpolate, scale_position):
        value = compute(embedding, *size, 16)
        [gradient] = torch.autograd.grad(
            (value * torch.arange(value.shape[1])[:, None]).sum(), embedding
        )
        found.append((value.detach(), gradient))
    # Where only the scale differs from 1 and no count, torch's own backward pass copies, though its
    # forward does not.
    kinds = slice(0, 1) if size == (230, 224) else slice(0, 2)
    for theirs, ours in list(zip(*found, strict=True))[kinds]:
        assert float((theirs - ours).abs().max()) <= 1e-6 * float(theirs.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_narrow_embeddings_do_not_make_it_coarse(dtype):
    embedding = torch.randn(1, 197, 24, generator=torch.Generator().manual_seed(0))
    exact = scale_position(embedding, 96, 48, 16)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(scale_position(embedding, 96, 48, 16), exact)
    narrow = scale_position(embedding.to(dtype), 96, 48, 16)
    assert narrow.dtype == dtype
    assert torch.equal(narrow, scale_position(embedding.to(dtype).float(), 96, 48, 16).to(dtype))


def test_the_op_lists_do_not_make_it_coarse(op_lists):
    embedding = torch.randn(1, 197, 24, generator=torch.Generator().manual_seed(0))
    exact = scale_position(embedding, 96, 48, 16)
    with op_lists.autocast():
        assert torch.equal(scale_position(embedding, 96, 48, 16), exact)


@pytest.fixture
def op_lists():
    """The project's two lists on the CPU: products in bf16."""
    from dino.devices.config import PrecisionConfig
    from dino.devices.op_lists import CastingOps, read_op_lists

    casting = CastingOps("cpu", read_op_lists(PrecisionConfig(hmp=True)))
    with casting.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    yield casting
    casting.close()


def test_rows_of_the_weights_sum_to_one():
    for count, side in ((6, 14), (60, 14), (1, 28)):
        weights = compute_weights(count, side)
        assert weights.shape == (count, side)
        torch.testing.assert_close(weights.sum(1), torch.ones(count))


def test_expected_sizes_change_nothing_and_are_in_no_checkpoint():
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=24, depth=1, heads=2).eval()
    names, sizes = model.state_dict().keys(), ((96, 96), (224, 224), (96, 48))
    images = [torch.randn(1, 3, *size) for size in sizes]
    with torch.no_grad():
        before = [model(image) for image in images]
        model.expect_sizes([96, 224])
        assert [tuple(part.shape) for part in model.buffers()] == [(6, 14)]
        assert model.state_dict().keys() == names
        assert all(
            torch.equal(model(image), features)
            for image, features in zip(images, before, strict=True)
        )


def test_a_compiler_sees_two_products_and_no_interpolation():
    """Forward and back: no operator that adds up gradients by index."""
    seen: list[str] = []

    def watch(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Parameter(torch.randn(1, 197, 24))
            self.register_buffer("weights", compute_weights(6, 14), persistent=False)

        def forward(self):
            return scale_position(self.embedding, 96, 96, 16, {6: self.weights})

    compiled = torch.compile(
        Position(), backend=aot_autograd(fw_compiler=watch), fullgraph=True, dynamic=False
    )
    compiled().sum().backward()
    assert sum("mm" in name for name in seen) == 4
    assert not [name for name in seen if "index" in name or "bicubic" in name]
    assert len(seen) < 40
