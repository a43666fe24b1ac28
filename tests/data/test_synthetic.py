"""Batches that no image is behind."""

import torch

from dino.data.crops import CropRecipe
from dino.data.photometric import PARAMETERS
from dino.data.synthetic import SyntheticLoader, make_batch, make_synthetic_source

CPU = torch.device("cpu")


def make(local_views=3, seed=0):
    recipe = CropRecipe(global_size=16, local_size=8, local_views=local_views)
    return make_batch(recipe, 5, seed=seed, device=CPU, to_device=lambda tensor: tensor)


def test_a_batch_has_the_loaders_shapes_and_types():
    batch = make()
    assert batch.global_pixels.shape == (5, 2, 16, 16, 3) and batch.local_pixels.shape == (
        5,
        3,
        8,
        8,
        3,
    )
    assert batch.global_pixels.dtype == batch.local_pixels.dtype == torch.uint8
    assert (
        batch.global_parameters.shape == (5, 2, PARAMETERS)
        and batch.local_parameters.dtype == torch.float32
    )
    assert batch.replaced.tolist() == [0] * 5
    assert 0 <= int(batch.global_pixels.min()) < 10 and 245 < int(batch.global_pixels.max()) <= 255


def test_without_local_views_the_shapes_stay():
    batch = make(local_views=0)
    assert batch.local_pixels.shape == (5, 0, 8, 8, 3) and batch.local_parameters.shape == (
        5,
        0,
        PARAMETERS,
    )


def test_the_seed_decides_the_batch():
    one, same, other = make(), make(), make(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.global_pixels, other.global_pixels)
    assert not torch.equal(one.global_parameters, other.global_parameters)


def test_the_loader_gives_the_rest_of_an_epoch():
    loader = SyntheticLoader(make(), 4)
    assert len(loader) == 4 and loader.workers == 0
    assert len(list(loader.read(0))) == 4 and len(list(loader.read(3, start=3))) == 1
    first, second, *_ = loader.read(0)
    assert first is second


def test_the_source_counts_images_and_has_a_digest():
    source = make_synthetic_source(12)
    assert len(source) == 12 and source.fingerprint() == make_synthetic_source(12).fingerprint()
    assert source.fingerprint() != make_synthetic_source(13).fingerprint()
