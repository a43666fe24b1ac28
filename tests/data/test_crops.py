"""Crops depend on (seed, epoch, index) alone, and are distributed as the original's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from dino.data import photometric
from dino.data.crops import (
    CropRecipe,
    ViewRecipe,
    build_rng,
    center_crop,
    cut_crops,
    draw_box,
    draw_parameters,
    random_resized_crop,
    resize_crop,
    resize_square,
)
from dino.data.decode import read_image

RECIPE = CropRecipe(global_size=32, local_size=16, local_views=3)


def draw_image(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, channels)).astype(np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def draw_smooth_image(height: int, width: int) -> Image.Image:
    """Random colors on a coarse grid, enlarged: edges and gradients as a photo has them."""
    coarse = (
        np.random.RandomState(7)
        .randint(0, 256, (max(2, height // 12), max(2, width // 12), 3))
        .astype(np.uint8)
    )
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_crops_are_within_one_level_of_pillow(augment_numbers: dict[str, np.ndarray]) -> None:
    numbers = augment_numbers
    crops = sorted({key.rsplit("/", 1)[0] for key in numbers if "/crop/" in key})
    assert len(crops) >= 8
    for crop in crops:
        image = torch.from_numpy(numbers[f"{crop.split('/')[0]}/photo"]).permute(2, 0, 1)
        size = int(numbers[f"{crop}/size"])
        result = resize_crop(image, tuple(numbers[f"{crop}/params"].tolist()), (size, size))
        expected = torch.from_numpy(numbers[f"{crop}/image"]).permute(2, 0, 1)
        assert (result.int() - expected.int()).abs().max() <= 1, crop


def test_crops_are_a_function_of_seed_epoch_and_index() -> None:
    image = draw_image(50, 40)
    crops = cut_crops(image, RECIPE, build_rng(1, 2, 3))
    again = cut_crops(image, RECIPE, build_rng(1, 2, 3))
    assert all(torch.equal(one, two) for one, two in zip(crops, again, strict=True))
    for key in ((0, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1)):
        other = cut_crops(image, RECIPE, build_rng(*key))
        assert not torch.equal(crops.global_pixels, other.global_pixels)
        assert not torch.equal(crops.local_parameters, other.local_parameters)


def test_the_views_of_one_image_differ() -> None:
    crops = cut_crops(draw_image(50, 40), RECIPE, build_rng(0, 0, 0))
    assert not torch.equal(*crops.global_pixels)
    assert not torch.equal(*crops.global_parameters)


@pytest.mark.parametrize("channels", [1, 3, 4, 8])
@pytest.mark.parametrize("views", [0, 1, 10])
def test_shapes_follow_the_recipe(channels: int, views: int) -> None:
    recipe = CropRecipe(global_size=20, local_size=12, local_views=views, channels=channels)
    crops = cut_crops(draw_image(30, 33, channels), recipe, build_rng(0, 0, 0), replaced=2)
    assert crops.global_pixels.shape == (2, 20, 20, channels)
    assert crops.local_pixels.shape == (views, 12, 12, channels)
    assert crops.global_parameters.shape == (2, photometric.PARAMETERS)
    assert crops.local_parameters.shape == (views, photometric.PARAMETERS)
    assert crops.global_pixels.dtype == crops.local_pixels.dtype == torch.uint8
    assert crops.replaced.item() == 2


def test_the_global_views_do_not_depend_on_the_local_ones() -> None:
    image, without = draw_image(50, 40), CropRecipe(global_size=32, local_size=16, local_views=0)
    with_local, alone = (
        cut_crops(image, recipe, build_rng(0, 0, 0)) for recipe in (RECIPE, without)
    )
    assert torch.equal(with_local.global_pixels, alone.global_pixels)


def compute_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest gap between their cumulative
    shares."""
    points = np.concatenate([one, two])
    shares = [
        np.searchsorted(np.sort(sample), points, side="right") / len(sample)
        for sample in (one, two)
    ]
    return float(np.abs(shares[0] - shares[1]).max())


def describe_boxes(boxes: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
    """Area share, log aspect ratio and place of the middle of boxes (top, left, height, width)."""
    top, left, tall, wide = boxes.T.astype(float)
    return {
        "area": tall * wide / (height * width),
        "aspect": np.log(wide / tall),
        "row": top + tall / 2,
        "column": left + wide / 2,
    }


@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.4), (0.08, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (200, 200), (120, 640)])
def test_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    count, rng = 5000, build_rng(0, 0, 0)
    image = Image.new("L", (width, height))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [
            transforms.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
            for _ in range(count)
        ]
    expected = describe_boxes(np.array(drawn), height, width)
    found = describe_boxes(
        np.array([draw_box(height, width, scale, rng) for _ in range(count)]), height, width
    )
    for name in expected:
        assert compute_distance(found[name], expected[name]) < 0.05, name
        assert (
            abs(found[name].mean() - expected[name].mean()) < 0.1 * expected[name].std() + 1e-9
        ), name


@settings(max_examples=200)
@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    scale=st.tuples(st.floats(0.001, 1.0), st.floats(0.001, 1.0)).map(sorted),
    seed=st.integers(0, 2**31),
)
def test_boxes_lie_inside_the_image(height: int, width: int, scale: list[float], seed: int) -> None:
    top, left, tall, wide = draw_box(
        height, width, (scale[0], scale[1]), np.random.default_rng(seed)
    )
    assert 0 <= top <= top + tall <= height
    assert 0 <= left <= left + wide <= width
    assert min(tall, wide) >= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (10, 4000), (4000, 10), (1, 4000)])
def test_extreme_images_give_crops_of_the_usual_shape(height: int, width: int) -> None:
    crops = cut_crops(draw_image(height, width), RECIPE, build_rng(0, 0, 0))
    assert crops.global_pixels.shape == (2, 32, 32, 3)
    assert crops.local_pixels.shape == (3, 16, 16, 3)


@pytest.mark.parametrize(("height", "width"), [(10, 4000), (4000, 10), (30, 31)])
def test_where_no_try_fits_the_middle_is_taken_as_torchvision_does(height: int, width: int) -> None:
    scale = (1.5, 2.0)  # larger than any image: every try fails
    reference = transforms.RandomResizedCrop.get_params(
        Image.new("L", (width, height)), list(scale), [3 / 4, 4 / 3]
    )
    assert draw_box(height, width, scale, build_rng(0, 0, 0)) == tuple(map(int, reference))


def draw_rows(view: ViewRecipe, count: int = 4000) -> np.ndarray:
    rng = build_rng(0, 0, 0)
    return draw_parameters([view] * count, rng)


def test_operations_have_the_probabilities_of_the_paper() -> None:
    first, second = CropRecipe().global_recipes()
    local = CropRecipe().local_recipes()[0]
    for name, view, blur, solarize in (
        ("first", first, 1, 0),
        ("second", second, 0.1, 0.2),
        ("local", local, 0.5, 0),
    ):
        rows = draw_rows(view)
        assert set(np.unique(rows[:, :5])) <= {0.0, 1.0}
        for column, chance in enumerate((0.5, 0.8, 0.2, blur, solarize)):
            tolerance = 4 * np.sqrt(
                chance * (1 - chance) / len(rows)
            )  # four standard errors; none for 0 and 1
            assert abs(rows[:, column].mean() - chance) <= tolerance, (name, column)


def test_factors_and_radii_fill_the_ranges_of_the_paper() -> None:
    rows = draw_rows(CropRecipe().global_recipes()[0])
    ranges = [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1), (0.1, 2.0)]
    columns = [*rows[:, photometric.FACTORS].T, rows[:, photometric.RADIUS]]
    for drawn, (low, high) in zip(columns, ranges, strict=True):
        assert low - 1e-6 <= drawn.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < drawn.max() <= high + 1e-6
        assert compute_distance(drawn, np.linspace(low, high, 4000)) < 0.03  # uniform


def test_orders_are_permutations_and_all_of_them_are_drawn() -> None:
    orders = draw_rows(CropRecipe().global_recipes()[0])[:, photometric.ORDER].astype(int)
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(kinds) == 24
    assert counts.min() > 0.6 * counts.mean()


def test_a_box_of_the_wanted_size_is_only_cut() -> None:
    image = draw_image(20, 30)
    assert torch.equal(resize_crop(image, (3, 5, 8, 8), (8, 8)), image[:, 3:11, 5:13])


def read_original_center(picture: Image.Image, size: int) -> torch.Tensor:
    """The original's evaluation transform, scaled to `size`."""
    resize = transforms.Resize(
        round(size * 256 / 224), interpolation=transforms.InterpolationMode.BICUBIC
    )
    return as_tensor(transforms.CenterCrop(size)(resize(picture)))


@pytest.mark.parametrize(
    ("height", "width"),
    [(256, 256), (300, 300), (224, 224), (375, 500), (500, 375), (333, 501), (60, 75), (900, 131)],
)
def test_the_center_crop_is_the_originals(height: int, width: int) -> None:
    picture = draw_smooth_image(height, width)
    result, expected = center_crop(as_tensor(picture), 224), read_original_center(picture, 224)
    assert result.shape == (3, 224, 224)
    assert (result.int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("size", [32, 48, 64, 96])
def test_the_center_crop_scales_with_the_size(size: int) -> None:
    picture = draw_smooth_image(151, 200)
    difference = (
        center_crop(as_tensor(picture), size).int() - read_original_center(picture, size).int()
    )
    assert difference.abs().max() <= 2


def test_the_center_crop_of_photos_is_the_originals(shared_data: Path) -> None:
    folder = shared_data / "imagenet_jpegs" / "class_00"
    for path in sorted(folder.iterdir())[:4]:
        with Image.open(path) as picture:
            expected = read_original_center(picture.convert("RGB"), 224)
        difference = (center_crop(read_image(path), 224).int() - expected.int()).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.2


@pytest.mark.parametrize(
    ("height", "width", "size"), [(240, 320, 224), (97, 50, 64), (30, 41, 48), (32, 32, 32)]
)
def test_the_whole_image_becomes_a_square_as_by_torchvision(
    height: int, width: int, size: int
) -> None:
    picture = draw_smooth_image(height, width)
    resize = transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC)
    difference = (
        resize_square(as_tensor(picture), size).int() - as_tensor(resize(picture)).int()
    ).abs()
    assert difference.max() <= 2 and difference.float().mean() < 0.2


@settings(max_examples=40)
@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(1, 40))
def test_the_center_crop_always_has_its_size(height: int, width: int, size: int) -> None:
    assert center_crop(draw_image(height, width), size).shape == (3, size, size)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (300, 200), (224, 224)])
def test_a_random_view_is_what_torchvision_makes_of_the_same_draw(height: int, width: int) -> None:
    """Bilinear on a picture, which is antialiased; the box and the flip are those of the image's
    own generator."""
    picture, flips = draw_smooth_image(height, width), 0
    for index in range(20):
        rng = build_rng(1, 2, index)
        top, left, tall, wide = draw_box(height, width, (0.08, 1.0), rng)
        expected = transforms.functional.resized_crop(picture, top, left, tall, wide, [48, 48])
        flipped = rng.random() < 0.5
        expected = as_tensor(transforms.functional.hflip(expected) if flipped else expected)
        found = random_resized_crop(as_tensor(picture), build_rng(1, 2, index), 48)
        assert found.shape == (3, 48, 48) and found.dtype == torch.uint8
        assert (found.int() - expected.int()).abs().max() <= 1
        flips += flipped
    assert 4 <= flips <= 16
