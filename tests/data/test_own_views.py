"""The two fixed views of an image: the same in every run and every process, harder level by
level."""

from pathlib import Path

import pytest
import torch

from dino.data.crops import CropRecipe
from dino.data.datasets import Share
from dino.data.own_views import AREAS, OwnViewDataset, read_own_views
from dino.data.sources import open_training_source
from dino.errors import DataError
from tests.running import make_images

RECIPE = CropRecipe(global_size=16, local_size=8, local_views=1)


def cut(folder: Path, *, level: int = 0, rank: int = 0, world: int = 1, skip_bad: bool = False):
    source = open_training_source(str(folder))
    share = Share(rank=rank, world_size=world)
    dataset = OwnViewDataset(source, RECIPE, level=level, skip_bad=skip_bad, share=share)
    return read_own_views(dataset, workers=0, start=None)


def test_an_image_has_the_same_two_views_whoever_cuts_them(tmp_path: Path) -> None:
    images = make_images(tmp_path, 5, size=40)
    whole, halves = cut(images), [cut(images, rank=rank, world=2) for rank in (0, 1)]
    assert whole.shape == (5, 2, 3, 16, 16) and whole.dtype == torch.uint8
    assert torch.equal(torch.stack(halves, dim=1).flatten(0, 1)[:5], whole)
    assert torch.equal(whole, cut(images)) and not torch.equal(whole[:, 0], whole[:, 1])
    assert not halves[1][2].any()  # two images of five, and as many rows as the first process


def test_harder_views_show_less_of_the_image(tmp_path: Path) -> None:
    """Of a horizontal ramp, the range of levels in a view is about its width."""
    from PIL import Image

    ramp = Image.linear_gradient("L").convert("RGB")
    for index in range(8):
        ramp.save(tmp_path / f"{index}.png")
    spans = []
    for level in range(len(AREAS)):
        views = cut(tmp_path, level=level).float().mean(dim=(2, 4))  # (N, 2, rows)
        spans.append((views.amax(dim=2) - views.amin(dim=2)).mean())
    assert spans[0] > 1.2 * spans[1] > 1.2 * 1.2 * spans[2]


def test_an_unreadable_image_stops_or_is_replaced(tmp_path: Path) -> None:
    images = make_images(tmp_path, 3, size=40)
    (images / "001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"001\.png"):
        cut(images)
    views = cut(images, skip_bad=True)
    assert views[1].float().std() > 10
