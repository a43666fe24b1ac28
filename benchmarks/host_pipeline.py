"""The data path of one core beside the textbook's, in one run.

    python benchmarks/host_pipeline.py FOLDER [images] [rounds]          # 96 images, 5 rounds

Prints one JSON line a way: images a second of processor time (which other users of the machine
change less than the clock on the wall) as median, smallest and largest of several rounds, taken in
turn, and its ratio to the textbook and to decoding. Ways: `textbook` is the paper's ten crops of
Pillow and torchvision; `native` is what our loaders do with a compiler, `torch` without one or with
DINO_NATIVE=0; `host_and_device` adds what the device does, on this core, in batches; `decode` is
reading pixels alone. Without a compiler `native` is the same as `torch`.
"""

from __future__ import annotations

import functools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from PIL import Image, ImageFilter, ImageOps  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402
from torchvision import transforms as T  # noqa: E402

from dino.data.crops import CropRecipe, ViewRecipe  # noqa: E402
from dino.data.datasets import CropDataset  # noqa: E402
from dino.data.decode import read_image  # noqa: E402
from dino.data.native import choose_cut  # noqa: E402
from dino.data.photometric import IMAGENET_MEAN, IMAGENET_STD, Normalization, augment  # noqa: E402
from dino.data.sources import open_images  # noqa: E402

BATCH = 8


def build_textbook(recipe: CropRecipe) -> list[T.Compose]:
    """The transforms of the paper's appendix, from a Pillow picture to float32, a view each."""

    def build(view: ViewRecipe) -> T.Compose:
        def blur(picture: Image.Image) -> Image.Image:
            return picture.filter(
                ImageFilter.GaussianBlur(view.blur_scale * random.uniform(0.1, 2.0))
            )

        jitter = T.ColorJitter(0.4, 0.4, 0.2, 0.1)
        return T.Compose(
            [
                T.RandomResizedCrop(
                    view.size, scale=view.scale, interpolation=T.InterpolationMode.BICUBIC
                ),
                T.RandomHorizontalFlip(),
                T.RandomApply([jitter], p=0.8),
                T.RandomGrayscale(p=0.2),
                T.RandomApply([T.Lambda(blur)], p=view.blur),
                T.RandomApply([T.Lambda(ImageOps.solarize)], p=view.solarize),
                T.ToTensor(),
                T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    return [build(view) for view in (*recipe.global_recipes(), *recipe.local_recipes())]


def build_ways(folder: str) -> tuple[dict[str, Callable[[list[int]], object]], int]:
    """Each way as a callable of image indices, and how many images there are."""
    source = open_images(folder)
    dataset, plain = (CropDataset(source, CropRecipe(), seed=0, skip_bad=False) for _ in range(2))
    dataset.cut = choose_cut()
    views, normalize = build_textbook(CropRecipe()), Normalization()

    def run_textbook(indices: list[int]) -> None:
        for index in indices:
            with Image.open(source.path(index)) as picture:
                picture = picture.convert("RGB")
            [view(picture) for view in views]

    def run_device(indices: list[int]) -> None:
        for start in range(0, len(indices), BATCH):
            batch = default_collate([dataset[0, index] for index in indices[start : start + BATCH]])
            for group in (batch[:2], batch[2:4]):
                pixels, rows = (part.transpose(0, 1).flatten(0, 1) for part in group)
                augment(pixels.movedim(-1, 1), rows, normalize, eager=True)

    def run_host(dataset: CropDataset, indices: list[int]) -> None:
        for index in indices:
            dataset[0, index]

    def run_decode(indices: list[int]) -> None:
        for index in indices:
            read_image(source.path(index))

    ways = {
        "textbook": run_textbook,
        "native": functools.partial(run_host, dataset),
        "torch": functools.partial(run_host, plain),
        "host_and_device": run_device,
        "decode": run_decode,
    }
    return ways, len(source)


def main() -> None:
    """Measure."""
    torch.set_num_threads(1)
    folder, count, rounds = (*sys.argv[1:], *("", "96", "5")[len(sys.argv) - 1 :])
    ways, available = build_ways(folder)
    indices = [place * available // int(count) for place in range(int(count))]
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run(indices[:BATCH])
    for _ in range(int(rounds)):
        for name, run in ways.items():
            began = time.process_time()
            run(indices)
            rates[name].append(len(indices) / (time.process_time() - began))
    for name, found in rates.items():
        line = {"way": name, "images_per_second": [round(part, 1) for part in _spread(found)]}
        for other in ("textbook", "decode"):
            pairs = [one / two for one, two in zip(found, rates[other], strict=True)]
            line[f"times_{other}"] = [round(part, 3) for part in _spread(pairs)]
        print(json.dumps({**line, "images": len(indices), "load": round(os.getloadavg()[0], 2)}))


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


if __name__ == "__main__":
    main()
