"""Descriptors are what their formulas say, image by image, whatever else is in the batch."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dino.evaluation.descriptors import ClsGem, MultiScale, compute_gem
from dino.models.registry import build_backbone
from dino.models.vit import VisionTransformer
from tests import hpu_simulator


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
        pooled = [np.mean([max(patch[d], 1e-6) ** 4 for patch in image[1:]]) ** 0.25 for d in range(image.shape[1])]
        np.testing.assert_allclose(row, [*image[0], *pooled], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_gem_is_the_originals_pooling_of_the_grid(images: torch.Tensor) -> None:
    tokens = images.flatten(2).transpose(1, 2)  # (B, 40 x 24, 3)
    grid = tokens.reshape(3, 40, 24, 3).clamp(min=1e-6).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(grid.pow(4), (40, 24)).pow(1.0 / 4).reshape(3, -1)
    torch.testing.assert_close(compute_gem(tokens), pooled)
    assert compute_gem(-tokens.abs()).max().item() == pytest.approx(1e-6)


@torch.inference_mode()
def test_three_sizes_are_averaged_for_each_image_on_its_own(backbone: VisionTransformer, images: torch.Tensor) -> None:
    found = F.normalize(MultiScale(backbone)(images), dim=1)
    for index in range(len(images)):
        one = images[index : index + 1].cpu()
        sizes = [one, *(F.interpolate(one, size=size, mode="bilinear") for size in ((28, 16), (20, 12)))]
        # The original hands on the scale and not the size, and torch then steps by the scale's inverse.
        sizes[1] = F.interpolate(one, scale_factor=1 / 2 ** (1 / 2), mode="bilinear", align_corners=False)
        assert [tuple(size.shape[2:]) for size in sizes] == [(40, 24), (28, 16), (20, 12)]
        mean = sum(backbone(size.to(images.device)) for size in sizes) / 3
        torch.testing.assert_close(found[index], (mean / mean.norm())[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_card_computes_them_all_itself(device: torch.device, backbone: nn.Module, images: torch.Tensor) -> None:
    with hpu_simulator.watch() if device.type == "hpu" else contextlib.nullcontext(hpu_simulator.Seen()) as seen:
        assert all(describe(images).device.type == device.type for describe in (ClsGem(backbone), MultiScale(backbone)))
    assert not seen.fallbacks and not seen.float64 and not seen.host_reads
