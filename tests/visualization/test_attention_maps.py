"""Attention maps: the right rows of the right softmax, and the original's masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dino.models.registry import build_backbone
from dino.models.vit import VisionTransformer
from dino.visualization.attention_maps import ClsAttention, add_mean, keep_mass

HEADS = 3


def build() -> VisionTransformer:
    backbone = build_backbone("vit_mini", patch_size=8, img_size=32)
    assert isinstance(backbone, VisionTransformer)
    return backbone.eval()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 48), (64, 24)])
def test_maps_are_the_class_tokens_attention_to_the_patches(height: int, width: int) -> None:
    backbone, images = build(), torch.randn(2, 3, height, width)
    with torch.no_grad():
        maps, whole = ClsAttention(backbone)(images), backbone.get_last_selfattention(images)
    assert maps.shape == (2, HEADS, height // 8, width // 8)
    assert torch.allclose(maps.flatten(2), whole[:, :, 0, 1:], atol=1e-6)
    assert torch.all(maps.sum(dim=(2, 3)) < 1.0)


@pytest.mark.parametrize("patch_size", [16, 8])
def test_maps_are_those_of_the_original(
    patch_size: int,
    golden: Callable[[str], dict[str, np.ndarray]],
    draw: Callable[..., torch.Tensor],
    relative_error: Callable[[object, object], float],
) -> None:
    arrays = golden(f"vit_patch{patch_size}")
    model = VisionTransformer(patch_size=patch_size, embed_dim=48, depth=2, heads=3).eval()
    model.load_state_dict(
        {name[2:]: torch.as_tensor(arrays[name]) for name in arrays if name.startswith("w/")}
    )
    keys = [key for key in arrays if key.startswith("attn/")]
    assert keys
    for key in keys:
        number, shape = key.split("/")[1:]
        with torch.no_grad():
            maps = ClsAttention(model)(draw(int(number), *map(int, shape.split("x"))))
        assert relative_error(maps.flatten(2), arrays[key][:, :, 0, 1:]) <= 1e-5, key


def test_no_tensor_has_a_number_for_every_pair_of_tokens() -> None:
    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):  # noqa: ANN001, ANN202
            result = op(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.largest = max(self.largest, tensor.numel())
            return result

    backbone, images = build(), torch.zeros(1, 3, 256, 256)
    tokens = (256 // 8) ** 2 + 1
    with torch.no_grad(), Sizes() as ours:
        ClsAttention(backbone)(images)
    with torch.no_grad(), Sizes() as textbook:
        backbone.get_last_selfattention(images)
    assert ours.largest < tokens * tokens
    assert textbook.largest >= HEADS * tokens * tokens


def keep_mass_as_the_original(weights: np.ndarray, share: float) -> np.ndarray:
    """Sort up, running sum over the total, keep above 1 - share; patch by patch."""
    kept, running = np.zeros(weights.size, bool), np.float32(0)
    for place in np.argsort(weights, kind="stable"):
        running += weights[place] / weights.sum()
        kept[place] = running > 1 - share
    return kept


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_the_kept_patches_are_the_smallest_set_that_holds_the_share(
    weights: list[int], share: float
) -> None:
    values = np.array(weights, dtype=np.float32)
    kept = keep_mass(torch.from_numpy(values).reshape(1, 1, -1), share)[0, 0].numpy()
    total = values.sum(dtype=np.float64)
    assert values[kept].min() >= values[~kept].max(initial=0)
    assert values[kept].sum(dtype=np.float64) / total >= share - 1e-5
    assert (values[kept].sum(dtype=np.float64) - values[kept].min()) / total <= share + 1e-5


def test_where_the_weakest_patches_hold_exactly_the_rest_none_of_them_is_kept() -> None:
    """The original keeps a patch if the running sum *exceeds* 1 - share; eighths are exact in
    binary."""
    maps = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[4.0, 2.0], [1.0, 1.0]]])
    kept = keep_mass(maps, 0.5)
    assert kept.tolist() == [[[False, False], [True, True]], [[True, False], [False, False]]]
    for found, weights in zip(kept, maps, strict=True):
        assert np.array_equal(
            found.flatten().numpy(), keep_mass_as_the_original(weights.flatten().numpy(), 0.5)
        )


def test_masks_are_the_originals(draw: Callable[..., torch.Tensor]) -> None:
    maps = draw(5, 2, 3, 6, 7).softmax(dim=-1) / 10
    for share in (0.1, 0.6, 0.99):
        kept = keep_mass(maps, share)
        assert kept.shape == maps.shape and kept.dtype == torch.bool
        for found, weights in zip(kept.flatten(0, 1), maps.flatten(0, 1), strict=True):
            expected = keep_mass_as_the_original(weights.flatten().numpy(), share)
            assert np.array_equal(found.flatten().numpy(), expected)


def test_the_mean_over_the_heads_comes_last(draw: Callable[..., torch.Tensor]) -> None:
    maps = draw(5, 2, 3, 6, 7)
    assert torch.equal(add_mean(maps)[:, :3], maps)
    assert torch.equal(add_mean(maps)[:, 3], maps.mean(dim=1))
