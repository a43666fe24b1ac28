"""Descriptors hold the numbers of the tokens they are made of, in the original's order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dino.evaluation.descriptors import BlockTokens, ClsGem, LastBlocks, MultiScale, compute_gem
from dino.models.registry import build_backbone
from dino.models.vit import VisionTransformer
from tests import hpu_simulator

pytestmark = pytest.mark.usefixtures("device")


def build_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=5, heads=2).eval()


def compute_tokens(model: VisionTransformer, images: torch.Tensor) -> list[np.ndarray]:
    """Normalised tokens after each block, one block at a time."""
    found, tokens = [], model._embed(images)
    for block in model.blocks:
        tokens = block(tokens)
        found.append(model.norm(tokens).detach().cpu().numpy())
    return found


@pytest.mark.parametrize("blocks", [1, 2])
def test_cls_tokens_are_the_originals(
    blocks: int,
    golden: Callable[[str], dict[str, np.ndarray]],
    draw: Callable[..., torch.Tensor],
    relative_error: Callable[[object, object], float],
) -> None:
    arrays = golden("vit_patch16")
    model = VisionTransformer(patch_size=16, embed_dim=48, depth=2, heads=3).eval()
    model.load_state_dict(
        {name[2:]: torch.as_tensor(arrays[name]) for name in arrays if name.startswith("w/")}
    )
    keys = [key for key in arrays if key.startswith("last2/")]
    assert len(keys) == 4
    for key in keys:
        images = draw(int(key.split("/")[1]), *map(int, key.split("/")[2].split("x")))
        tokens = arrays[key]  # (2, B, N, D)
        for average in (False, True):
            expected = [*tokens[2 - blocks : 1, :, 0], *(tokens[1, :, 0],) * (not average)]
            if average:  # the original joins the two along a new last axis
                expected.append(
                    np.stack([tokens[1, :, 0], tokens[1, :, 1:].mean(axis=1)], axis=-1).reshape(
                        -1, 96
                    )
                )
            with torch.no_grad():
                found = LastBlocks(model, blocks=blocks, average_patches=average)(images)
            assert relative_error(found, np.concatenate(expected, axis=1)) <= 1e-5, key


@pytest.mark.parametrize("blocks", [1, 3, 5])
@pytest.mark.parametrize("average", [False, True])
def test_a_descriptor_is_that_of_a_plain_loop(blocks: int, average: bool) -> None:
    model, images = build_vit(), torch.randn(3, 3, 32, 40)
    descriptor = LastBlocks(model, blocks=blocks, average_patches=average)
    tokens, rows = compute_tokens(model, images), []
    for image in range(3):
        row = [number for block in tokens[5 - blocks :] for number in block[image, 0]]
        if average:
            mean = [sum(column) / len(column) for column in tokens[-1][image, 1:].T]
            pairs = zip(row[-24:], mean, strict=True)
            row[-24:] = [number for pair in pairs for number in pair]
        rows.append(row)
    found = descriptor(images)
    assert found.shape == (3, descriptor.embed_dim) == (3, 24 * (blocks + average))
    np.testing.assert_allclose(found.detach().cpu().numpy(), np.array(rows), atol=1e-5)


@pytest.mark.parametrize("layers", [(5,), (1, 5), (4, 2)])
def test_chosen_blocks_come_in_the_order_asked_for(layers: tuple[int, ...]) -> None:
    model, images = build_vit(), torch.randn(2, 3, 32, 32)
    tokens = np.stack([compute_tokens(model, images)[layer - 1] for layer in layers], axis=1)
    with torch.no_grad():
        whole = BlockTokens(model, layers=layers, patches=True)(images).cpu().numpy()
        first = BlockTokens(model, layers=layers, patches=False)(images).cpu().numpy()
    assert whole.shape == (2, len(layers), 17, 24)
    np.testing.assert_allclose(whole, tokens, atol=1e-5)
    np.testing.assert_allclose(first, tokens[:, :, :1], atol=1e-5)


@pytest.fixture
def backbone(device: torch.device) -> VisionTransformer:
    with torch.device("cpu"):
        torch.manual_seed(0)
        module = build_backbone("vit_mini", patch_size=8, img_size=32).eval()
    assert isinstance(module, VisionTransformer)
    return module.to(device)


@pytest.fixture
def images(device: torch.device) -> torch.Tensor:
    drawn = np.random.RandomState(0).standard_normal((3, 3, 40, 24)).astype(np.float32)
    return torch.from_numpy(drawn).to(device)


@torch.inference_mode()
def test_cls_comes_first_and_gem_is_the_fourth_root_of_the_mean_fourth_power(
    backbone: VisionTransformer, images: torch.Tensor
) -> None:
    found = ClsGem(backbone)(images).cpu().numpy()
    tokens = backbone.get_intermediate_layers(images, n=1)[0].cpu().numpy().astype(np.float64)
    for image, row in zip(tokens, found, strict=True):
        pooled = [
            np.mean([max(patch[d], 1e-6) ** 4 for patch in image[1:]]) ** 0.25
            for d in range(image.shape[1])
        ]
        np.testing.assert_allclose(row, [*image[0], *pooled], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_gem_is_the_originals_pooling_of_the_grid(images: torch.Tensor) -> None:
    tokens = images.flatten(2).transpose(1, 2)  # (B, 40 x 24, 3)
    grid = tokens.reshape(3, 40, 24, 3).clamp(min=1e-6).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(grid.pow(4), (40, 24)).pow(1.0 / 4).reshape(3, -1)
    torch.testing.assert_close(compute_gem(tokens), pooled)
    assert compute_gem(-tokens.abs()).max().item() == pytest.approx(1e-6)


@torch.inference_mode()
def test_three_sizes_are_averaged_for_each_image_on_its_own(
    backbone: VisionTransformer, images: torch.Tensor
) -> None:
    found = F.normalize(MultiScale(backbone)(images), dim=1)
    for index in range(len(images)):
        one = images[index : index + 1].cpu()
        sizes = [
            one,
            *(F.interpolate(one, size=size, mode="bilinear") for size in ((28, 16), (20, 12))),
        ]
        # The original hands on the scale and not the size, and torch then steps by the scale's
        # inverse.
        sizes[1] = F.interpolate(
            one, scale_factor=1 / 2 ** (1 / 2), mode="bilinear", align_corners=False
        )
        assert [tuple(size.shape[2:]) for size in sizes] == [(40, 24), (28, 16), (20, 12)]
        mean = sum(backbone(size.to(images.device)) for size in sizes) / 3
        torch.testing.assert_close(found[index], (mean / mean.norm())[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_card_computes_them_all_itself(
    device: torch.device, backbone: nn.Module, images: torch.Tensor
) -> None:
    with (
        hpu_simulator.watch()
        if device.type == "hpu"
        else contextlib.nullcontext(hpu_simulator.Seen()) as seen
    ):
        assert all(
            describe(images).device.type == device.type
            for describe in (ClsGem(backbone), MultiScale(backbone))
        )
    assert not seen.fallbacks and not seen.float64 and not seen.host_reads
