"""What the tests of the Python API share: tiny data sets, settings of a quick run, equality to the
bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dino import checkpoint

RUN = {  # keywords of dino.pretrain
    **{
        "arch": "vit_mini",
        "patch_size": 8,
        "global_crops_size": 16,
        "local_crops_size": 8,
        "local_crops_number": 1,
    },
    **{
        "out_dim": 16,
        "batch_size_per_device": 4,
        "own_view_images": 0,
        "draw_pictures": False,
        "num_workers": 0,
        "device": "cpu",
        "epochs": 2,
        "saveckp_freq": 0,
    },
}
WORDS = [
    word for name, value in RUN.items() for word in (f"--{name}", str(value))
]  # the same for main_dino.py
COUNT = 12


def draw_pixels(index: int, size: int = 20) -> np.ndarray:
    """Colored noise (H, W, 3) uint8."""
    return np.random.default_rng(index).integers(0, 256, (size, size + 4, 3), dtype=np.uint8)


class Pictures(Dataset):
    """PIL images, or what `convert` makes of their pixels, with a label where `label` gives one."""

    def __init__(
        self,
        count: int = COUNT,
        convert: Callable[[np.ndarray], Any] = Image.fromarray,
        label: Callable[[int], Any] | None = None,
    ) -> None:
        self.count, self.convert, self.label = count, convert, label

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        image = self.convert(draw_pixels(index))
        return image if self.label is None else (image, self.label(index))


class Acting(Pictures):
    """Does something when image number `when` is read, counted over all reads of this process."""

    def __init__(self, when: int, act: Callable[[], None]) -> None:
        super().__init__()
        self.left, self.act = when, act

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left == 0:
            self.act()
        return super().__getitem__(index)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def write_pictures(folder: Path, count: int = COUNT, *, start: int = 0) -> Path:
    """The same images as `Pictures` holds, as files in its order."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(start, start + count):
        Image.fromarray(draw_pixels(index)).save(folder / f"{index:03}.png")
    return folder


def write_splits(root: Path) -> Path:
    """train and val with two classes each."""
    for start, part in enumerate(("train/ant", "train/bee", "val/ant", "val/bee")):
        write_pictures(root / part, 6, start=6 * start)
    return root


def load_state(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run."""
    return torch.load(folder / checkpoint.LATEST, weights_only=True)


def assert_same_bits(
    left: Any, right: Any, *, without: tuple[str, ...] = ("args",), path: str = ""
) -> None:
    """Through nested containers; keys of `without` may differ."""
    assert type(left) is type(right), path
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left.keys() - set(without):
            assert_same_bits(left[key], right[key], without=without, path=f"{path}/{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), path
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same_bits(*pair, without=without, path=f"{path}/{index}")
    else:
        assert left == right, path
