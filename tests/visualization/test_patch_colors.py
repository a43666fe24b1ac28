"""Principal components of patch features as colors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dino.visualization.patch_colors import color_patches


def draw_features(*shape: int, seed: int = 0) -> Tensor:
    """Return skewed features whose first dimensions spread most."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.tensor([9.0, 5.0, 3.0] + [0.1] * (shape[-1] - 3))
    return torch.randn(shape, generator=rng).exp() * scale


def test_the_first_three_components_become_red_green_and_blue() -> None:
    features = torch.zeros(1, 3, 3, 5)
    features[0, 0, 0, 3], features[0, 1, 1, 1], features[0, 2, 2, 4] = 30.0, 20.0, 10.0
    colors = color_patches(features)
    assert colors.shape == (1, 3, 3, 3)
    assert colors.dtype == np.uint8
    assert [*colors[0][[0, 1, 2], [0, 1, 2]].argmax(axis=-1)] == [0, 1, 2]
    assert colors[0][[0, 1, 2], [0, 1, 2], [0, 1, 2]].min() > 240
    assert (colors[0, 0, 1] == colors[0, 2, 0]).all()  # equal features


def test_images_are_colored_together_and_signs_do_not_depend_on_the_solver() -> None:
    features = draw_features(2, 4, 5, 8)
    together = color_patches(features)
    np.testing.assert_array_equal(color_patches(features.flip(0)), together[::-1])
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
    turned = color_patches(features @ rotation).astype(int)
    assert np.abs(turned - together).max() <= 1
    shifted = color_patches(features + 7).astype(int)
    assert np.abs(shifted - together).max() <= 1


def test_what_has_no_spread_is_gray_and_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    assert (color_patches(torch.full((2, 3, 3, 6), 2.5)) == 128).all()
    assert (color_patches(torch.ones(1, 1, 1, 4)) == 128).all()
    line = torch.arange(9.0).reshape(1, 3, 3, 1).expand(-1, -1, -1, 2)
    assert (color_patches(line)[..., 1:] == 128).all()
    assert len(np.unique(color_patches(line)[..., 0])) == 9
    assert torch.equal(torch.get_rng_state(), before)


def test_one_odd_patch_does_not_dim_the_others() -> None:
    features = draw_features(2, 16, 16, 8)
    plain = color_patches(features)
    features[0, 0, 0] *= 50
    assert color_patches(features)[..., 0].std() > 0.3 * plain[..., 0].std()
