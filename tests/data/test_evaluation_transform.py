"""torchvision's transforms give the evaluation's view to the bit, whatever the image is."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from dino.data.crops import center_crop
from dino.data.evaluation_transform import ToPixels, build_transform
from dino.data.photometric import Normalization, build_normalization
from dino.errors import DataError


def draw(height: int, width: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    size = (height, width, channels)
    return torch.randint(256, size, generator=generator, dtype=torch.uint8).permute(2, 0, 1)


def test_its_steps_are_torchvisions_and_say_their_numbers() -> None:
    transform = build_transform(ToPixels(), 224, Normalization())
    assert isinstance(transform, v2.Compose)
    assert repr(transform).splitlines()[1:-1] == [
        "      ToPixels(channels=3, pixel_range=None)",
        "      Resize(size=[256], interpolation=InterpolationMode.BICUBIC, antialias=True)",
        "      CenterCrop(size=(224, 224))",
        "      Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))",
    ]


@pytest.mark.parametrize(
    ("height", "width", "channels", "size"),
    [
        (120, 83, 3, 64),  # smaller
        (50, 51, 3, 64),  # larger
        (73, 73, 3, 64),  # as it is
        (30, 301, 1, 37),  # a long one, gray
        (61, 90, 13, 33),  # many channels
    ],
)
def test_it_is_the_evaluations_view(height: int, width: int, channels: int, size: int) -> None:
    image, normalization = draw(height, width, channels), build_normalization(channels)
    transform = build_transform(ToPixels(channels=channels), size, normalization)
    view = transform(image)
    assert (view.shape, view.dtype) == ((channels, size, size), torch.float32)
    assert torch.equal(view, normalization(center_crop(image, size)))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), view)


def test_any_picture_is_an_image() -> None:
    pixels = draw(40, 50, 3)
    transform = build_transform(ToPixels(), 32, Normalization())
    array = pixels.permute(1, 2, 0).numpy()
    for image in (array, Image.fromarray(array), Image.fromarray(array).convert("RGBA")):
        assert torch.equal(transform(image), transform(pixels))
    gray = Image.fromarray(array).convert("L")
    assert torch.equal(transform(gray), transform(gray.convert("RGB")))
    with pytest.raises(DataError, match=r"the image must be a PIL image, .* \(got float32"):
        transform(array.astype(np.float32))


def test_deep_levels_are_scaled_by_the_range() -> None:
    deep = np.arange(0, 4000, 2, dtype=np.uint16).reshape(40, 50)
    transform = build_transform(ToPixels(pixel_range=(1000.0, 3000.0)), 32, Normalization())
    scaled = np.rint((deep.clip(1000, 3000) - 1000.0) * (255 / 2000)).astype(np.uint8)
    assert torch.equal(transform(Image.fromarray(deep)), transform(Image.fromarray(scaled)))
