"""Views that the loaders augment are those that the device would make."""

import numpy as np
import pytest
import torch
from PIL import Image

from dino.data.crops import CropRecipe
from dino.data.datasets import CropDataset, augment_crops
from dino.data.photometric import Normalization, augment
from dino.data.sources import open_images


@pytest.mark.parametrize("local_views", [0, 3])
def test_the_host_augments_as_the_device_does(local_views, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    recipe, normalization = (
        CropRecipe(global_size=32, local_size=16, local_views=local_views),
        Normalization(),
    )
    settings = {"seed": 0, "skip_bad": False}
    crops = CropDataset(open_images(str(tmp_path)), recipe, **settings)[1, 0]
    augmented = CropDataset(
        open_images(str(tmp_path)), recipe, host_normalization=normalization, **settings
    )[1, 0]
    assert torch.equal(augmented.global_pixels, augment_crops(crops, normalization).global_pixels)
    for name in ("global", "local")[: 2 if local_views else 1]:
        levels, rows = getattr(crops, f"{name}_pixels"), getattr(crops, f"{name}_parameters")
        assert torch.equal(
            getattr(augmented, f"{name}_pixels"),
            augment(levels.movedim(-1, 1), rows, normalization),
        )
    assert (
        augmented.local_pixels.shape == (local_views, 3, 16, 16)
        and augmented.local_pixels.dtype == torch.float32
    )
