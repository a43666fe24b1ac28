"""Weights are fitted to other channels, patches and sizes only where that was asked for, and each
change is said."""

import logging

import pytest
import torch
from torch import nn

from dino.errors import WeightsError
from dino.models.registry import build_backbone
from dino.weights.resample import adapt_channels, adapt_input, resample_position


def build(**settings: int) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("vit_mini", **{"patch_size": 16, "img_size": 64, **settings})


def test_resampling_keeps_a_constant_embedding_and_an_equal_size() -> None:
    embedding = torch.cat([torch.full((1, 1, 3), 5.0), torch.full((1, 36, 3), 2.0)], dim=1)
    assert resample_position(embedding, 37) is embedding
    for tokens in (17, 65):
        resampled = resample_position(embedding, tokens)
        assert resampled.shape == (1, tokens, 3)
        assert torch.allclose(resampled[:, 1:], torch.full((1, tokens - 1, 3), 2.0))
        assert torch.equal(resampled[:, :1], embedding[:, :1])


def test_a_grid_that_is_no_square_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"must have a square number of patches \(got 6\)"):
        resample_position(torch.zeros(1, 7, 3), 17)


def test_a_gray_image_gives_what_its_color_copy_gave() -> None:
    weight, gray = torch.randn(5, 3, 4, 4), torch.randn(2, 1, 8, 8)
    color = torch.nn.functional.conv2d(gray.expand(-1, 3, -1, -1), weight)
    assert torch.allclose(
        torch.nn.functional.conv2d(gray, adapt_channels(weight, 1)), color, atol=1e-5
    )


@pytest.mark.parametrize(("there", "channels"), [(3, 4), (3, 2), (3, 7), (1, 3), (4, 3), (2, 6)])
def test_channels_repeat_in_order_and_keep_their_sum(there: int, channels: int) -> None:
    weight = torch.randn(5, there, 2, 2)
    found = adapt_channels(weight, channels)
    for channel in range(channels):
        assert torch.equal(found[:, channel], weight[:, channel % there] * (there / channels))
    if channels % there == 0:
        assert torch.allclose(found.sum(1), weight.sum(1), atol=1e-6)


def test_three_channels_are_fitted_as_timm_does() -> None:
    from timm.models._manipulate import adapt_input_conv

    weight = torch.randn(5, 3, 2, 2)
    for channels in (1, 2, 4, 5):
        assert torch.allclose(adapt_channels(weight, channels), adapt_input_conv(channels, weight))


def test_everything_is_adapted_where_it_was_asked_for_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    there, here = build(), build(in_chans=4, patch_size=8, img_size=96)
    with caplog.at_level(logging.INFO):
        found = adapt_input(
            there.state_dict(), here.state_dict(), "FILE", new_channels=True, new_patches=True
        )
    here.load_state_dict(found)
    assert caplog.messages == [
        "FILE: first layer from 3 to 4 channels, repeated, times 3/4",
        "FILE: patches from 16 to 8 pixels, resampled",
        "FILE: position embedding resampled from 16 to 144 patches, bicubic",
    ]


def test_a_resampled_patch_sees_in_an_enlarged_image_what_it_saw(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The rule of FlexiViT (Beyer et al., 2022): enlarging patch and image together keeps the
    product."""
    there, here = build(patch_size=8, img_size=32), build(patch_size=16, img_size=64)
    found = adapt_input(
        there.state_dict(), here.state_dict(), "FILE", new_channels=False, new_patches=True
    )
    flat = torch.full((1, 3, 32, 32), 0.7)
    before = torch.nn.functional.conv2d(
        flat, there.state_dict()["patch_embed.proj.weight"], stride=8
    )
    after = torch.nn.functional.conv2d(
        torch.full((1, 3, 64, 64), 0.7), found["patch_embed.proj.weight"], stride=16
    )
    assert torch.allclose(before, after, atol=1e-4)


def test_nothing_changes_where_everything_fits(caplog: pytest.LogCaptureFixture) -> None:
    tensors = build().state_dict()
    with caplog.at_level(logging.INFO):
        found = adapt_input(tensors, tensors, "FILE", new_channels=True, new_patches=True)
    assert all(found[name] is tensor for name, tensor in tensors.items()) and not caplog.messages


@pytest.mark.parametrize(("name", "here"), [("in_chans", 1), ("patch_size", 8)])
def test_what_nobody_asked_for_is_an_error_that_names_both_ways(name: str, here: int) -> None:
    there = {"in_chans": 3, "patch_size": 16}[name]
    with pytest.raises(WeightsError) as caught:
        adapt_input(
            build().state_dict(),
            build(**{name: here}).state_dict(),
            "FILE",
            new_channels=False,
            new_patches=False,
        )
    assert str(caught.value) == (
        f"FILE has `{name}` {there}, this network {here}: give `{name}` {there}, or `{name}` {here} to adapt it"
    )


def test_networks_of_other_kinds_have_their_first_convolution_fitted() -> None:
    there, here = build_backbone("resnet18"), build_backbone("resnet18", in_chans=1)
    found = adapt_input(
        there.state_dict(), here.state_dict(), "FILE", new_channels=True, new_patches=False
    )
    here.load_state_dict(found)
    assert torch.allclose(here.conv1.weight, there.conv1.weight.sum(1, keepdim=True))
