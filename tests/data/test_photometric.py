"""The device's augmentation is the original's Pillow chain, one image at a time, without a look at
any value."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dino.data import photometric
from dino.data.photometric import (
    IMAGENET_STD,
    PARAMETERS,
    Normalization,
    augment,
    build_normalization,
)

pytestmark = pytest.mark.usefixtures("device")

Arrays = dict[str, np.ndarray]
OPERATIONS = ("flip", "gray", "solarize", "brightness", "contrast", "saturation", "hue", "blur")


def as_views(image: np.ndarray) -> Tensor:
    """(S, S, 3) uint8 -> (1, 3, S, S) uint8."""
    return torch.as_tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


def build_row(
    *,
    flags: Any = (0, 0, 0, 0, 0),
    factors: Any = photometric.NEUTRAL,
    order: Any = (0, 1, 2, 3),
    radius: float = 1.0,
) -> Tensor:
    """One parameter row (1, PARAMETERS); `order` lists operations in the order they are due."""
    row = torch.zeros(1, PARAMETERS)
    row[0, :5] = torch.as_tensor(np.asarray(flags, dtype=np.float32))
    row[0, photometric.FACTORS] = torch.as_tensor(np.asarray(factors, dtype=np.float32))
    row[0, photometric.ORDER] = torch.as_tensor(np.argsort(order).astype(np.float32))
    row[0, photometric.RADIUS] = radius
    return row


def run(pixels: Tensor, row: Tensor) -> Tensor:
    """Augment and take the normalization back: floats in [0, 255]."""
    plain = Normalization(mean=(0.0,) * pixels.shape[1], std=(1 / 255,) * pixels.shape[1])
    return augment(pixels, row, plain)


def draw_views(count: int, size: int = 24, channels: int = 3, seed: int = 0) -> Tensor:
    pixels = np.random.RandomState(seed).randint(0, 256, (count, channels, size, size))
    return torch.as_tensor(pixels.astype(np.uint8))


def draw_rows(count: int, seed: int = 0) -> Tensor:
    rng = np.random.RandomState(seed)
    flags = rng.rand(count, 5) < 0.5
    factors = 1 + rng.uniform(-0.3, 0.3, (count, 4)) - (0, 0, 0, 1)
    rows = [
        build_row(
            flags=flags[i], factors=factors[i], order=rng.permutation(4), radius=rng.uniform(0.1, 2)
        )
        for i in range(count)
    ]
    return torch.cat(rows)


def golden_row(operation: str, value: float) -> Tensor:
    """The parameter row that applies one operation alone."""
    if operation in ("flip", "gray", "solarize"):
        return build_row(
            flags=[operation == name for name in ("flip", "jitter", "gray", "blur", "solarize")]
        )
    if operation == "blur":
        return build_row(flags=(0, 0, 0, 1, 0), radius=value)
    factors = list(photometric.NEUTRAL)
    factors[("brightness", "contrast", "saturation", "hue").index(operation)] = value
    return build_row(flags=(0, 1, 0, 0, 0), factors=factors)


def count_pictures(numbers: Arrays) -> int:
    return sum(key.endswith("/photo") for key in numbers)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_within_one_level_of_pillow(
    operation: str, augment_numbers: Arrays
) -> None:
    numbers, found = augment_numbers, 0
    for key in numbers:
        photo, kind, *rest = key.split("/")
        if kind != "op" or rest[1] != "param" or rest[0].split("_")[0] != operation:
            continue
        base = as_views(numbers[f"{photo}/crop/{int(numbers[f'{photo}/base_crop_index'])}/image"])
        result = run(base, golden_row(operation, float(numbers[key])))
        expected = as_views(numbers[key.replace("param", "image")]).float()
        assert (result - expected).abs().mean() <= 1.0, key
        found += 1
    assert found >= count_pictures(numbers) > 0


def test_the_chain_is_within_two_levels_of_pillow(augment_numbers: Arrays) -> None:
    numbers, found = augment_numbers, 0
    std = torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1)
    for key in numbers:
        if not key.endswith("/order"):
            continue
        photo, chain = key.split("/")[0], key.removesuffix("/order")
        base = as_views(numbers[f"{photo}/crop/{int(numbers[f'{photo}/base_crop_index'])}/image"])
        row = build_row(
            flags=numbers[f"{chain}/flags"],
            factors=numbers[f"{chain}/factors"],
            order=numbers[key],
            radius=float(numbers[f"{chain}/radius"]),
        )
        result = augment(base, row, Normalization())
        expected = torch.as_tensor(numbers[f"{chain}/normalised"])[None]
        assert ((result - expected).abs() * std * 255).mean() <= 2.0, chain
        found += 1
    assert found >= 8 * count_pictures(numbers) > 0


def test_without_flags_the_pixels_are_only_normalized() -> None:
    pixels, rows = draw_views(4), draw_rows(4)
    rows[:, :5] = 0
    assert torch.equal(augment(pixels, rows, Normalization()), Normalization()(pixels))


def test_neutral_factors_change_nothing_in_any_order() -> None:
    pixels = draw_views(1)
    for order in permutations(range(4)):
        assert torch.equal(
            run(pixels, build_row(flags=(0, 1, 0, 0, 0), order=order)), run(pixels, build_row())
        )


def test_every_image_has_its_own_parameters() -> None:
    pixels, rows = draw_views(12), draw_rows(12)
    together = augment(pixels, rows, Normalization())
    alone = torch.cat(
        [augment(pixels[i : i + 1], rows[i : i + 1], Normalization()) for i in range(12)]
    )
    assert torch.allclose(together, alone, atol=1e-5)


def apply_one(pixels: Tensor, operation: int, factor: float) -> Tensor:
    """One color operation on float pixels, as Pillow would apply it to whole levels."""
    wide = torch.tensor(factor).reshape(1, 1, 1, 1)
    if operation == photometric.HUE:
        return photometric.shift_hue(pixels, torch.tensor([factor]))
    luma = photometric.compute_gray(pixels)
    mean = (luma.round().mean() + 0.5).floor().reshape(1, 1, 1, 1)
    return photometric.blend_(pixels.clone(), (torch.zeros(1), mean, luma)[operation], wide)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_the_drawn_order_equals_the_operations_one_by_one(order: tuple[int, ...]) -> None:
    factors = (0.7, 1.3, 0.85, 0.08)
    pixels = draw_views(1, seed=3)
    expected = pixels.float()
    for operation in order:
        expected = apply_one(expected, operation, factors[operation])
    result = run(pixels, build_row(flags=(0, 1, 0, 0, 0), factors=factors, order=order))
    assert torch.allclose(result, expected, atol=1e-3)


def test_the_order_matters() -> None:
    pixels, factors = draw_views(1), (0.7, 1.3, 0.85, 0.08)
    rows = [
        build_row(flags=(0, 1, 0, 0, 0), factors=factors, order=order)
        for order in ((0, 1, 2, 3), (3, 2, 1, 0))
    ]
    assert (run(pixels, rows[0]) - run(pixels, rows[1])).abs().mean() > 1.0


def test_gray_views_have_three_equal_channels() -> None:
    red, green, blue = run(draw_views(2), build_row(flags=(0, 0, 1, 0, 0)).repeat(2, 1)).unbind(1)
    assert torch.equal(red, green)
    assert torch.equal(green, blue)


def test_a_blur_keeps_the_mean_of_a_plain_image_and_smooths_another() -> None:
    plain = torch.full((1, 3, 9, 9), 77, dtype=torch.uint8)
    blurred = build_row(flags=(0, 0, 0, 1, 0), radius=2.0)
    assert torch.allclose(run(plain, blurred), plain.float(), atol=1e-3)
    assert run(draw_views(1), blurred).std() < 0.5 * draw_views(1).float().std()


def test_the_strongest_blur_spreads_a_bright_pixel_six_pixels_far() -> None:
    """As far as Pillow's three box blurs reach, and with the weights of a Gaussian over that
    reach."""
    pixels = torch.zeros(1, 3, 25, 25, dtype=torch.uint8)
    pixels[..., 12, 12] = 255
    blurred = run(pixels, build_row(flags=(0, 0, 0, 1, 0), radius=2.0))[0, 0].cpu()
    distances = (torch.arange(25, device="cpu") - 12).abs()
    weights = torch.where(distances <= 6, torch.exp(-distances.square() / 8), 0.0)
    weights = weights / weights.sum()
    assert torch.allclose(blurred, 255 * weights[:, None] * weights, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts_skip_the_color_operations(channels: int) -> None:
    pixels, rows = draw_views(6, channels=channels), draw_rows(6)
    colorless = rows.clone()
    colorless[:, photometric.GRAY] = 0
    colorless[:, photometric.FACTORS] *= torch.tensor([1.0, 1.0, 0.0, 0.0])
    colorless[:, photometric.FACTORS] += torch.tensor([0.0, 0.0, 1.0, 0.0])
    normalization = build_normalization(channels)
    result = augment(pixels, rows, normalization)
    assert result.shape == pixels.shape
    assert torch.equal(result, augment(pixels, colorless, normalization))
    flipped = build_row(flags=(1, 0, 0, 0, 0))
    assert torch.equal(run(pixels[:1], flipped), pixels[:1].float().flip(-1))


def test_normalization_knows_imagenet_and_averages_it_elsewhere() -> None:
    assert build_normalization(3) == Normalization()
    assert build_normalization(1).mean == pytest.approx((0.449,))
    assert len(build_normalization(8).std) == 8
    assert build_normalization(1, {"mean": [0.5], "std": [0.1]}) == Normalization(
        mean=(0.5,), std=(0.1,)
    )
    white = Normalization()(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert white.tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rel=1e-5
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [4, 32])
def test_shapes_do_not_depend_on_values_so_a_device_without_values_computes_them(
    channels: int, size: int
) -> None:
    pixels = torch.empty((5, channels, size, size), dtype=torch.uint8, device="meta")
    rows = torch.empty((5, PARAMETERS), device="meta")
    result = augment(pixels, rows, build_normalization(channels))
    assert (result.shape, result.dtype, result.device.type) == (pixels.shape, torch.float32, "meta")


def test_the_host_reads_nothing_back() -> None:
    """Tensors without content cannot be read, nor can a shape depend on what they hold."""
    pixels, rows = draw_views(3).to("meta"), draw_rows(3).to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        float(rows[0, 0])
    result = augment(pixels, rows, Normalization())
    assert result.shape == pixels.shape and result.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_an_eager_device_leaves_out_would_change_nothing(count: int, channels: int) -> None:
    pixels, rows, normalization = (
        draw_views(count, channels=channels),
        draw_rows(count),
        build_normalization(channels),
    )
    assert torch.equal(
        augment(pixels, rows, normalization, eager=True), augment(pixels, rows, normalization)
    )


def test_the_input_is_left_as_it_was() -> None:
    pixels, rows = draw_views(3), draw_rows(3)
    before = pixels.clone(), rows.clone()
    augment(pixels, rows, Normalization())
    assert torch.equal(pixels, before[0])
    assert torch.equal(rows, before[1])
