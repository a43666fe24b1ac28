"""The whole training loader with two processes: uint8 crops for the device beside float views made by the loaders.

    python benchmarks/loader.py FOLDER [batch] [rounds]          # batch 16, 3 rounds

Prints one JSON line a way of `--augment_on`: images a second by the clock (median, smallest and
largest round, taken in turn), bytes that go to the device for one image, and resident memory of
this process and of its loaders in MiB.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

from torch import Tensor  # noqa: E402

from dino.data.crops import CropRecipe  # noqa: E402
from dino.data.datasets import CropDataset, Share  # noqa: E402
from dino.data.loaders import TrainLoader, build_train_loader  # noqa: E402
from dino.data.photometric import Normalization  # noqa: E402
from dino.data.sources import open_images  # noqa: E402

WORKERS = 2


def build(folder: str, batch: int, normalization: Normalization | None) -> TrainLoader:
    """The loader that training builds."""
    dataset = CropDataset(
        open_images(folder), CropRecipe(), seed=0, skip_bad=False, host_normalization=normalization
    )
    return build_train_loader(
        dataset, batch_size=batch, share=Share(), workers=WORKERS, pin_memory=False
    )


def read_memory(process: int) -> float:
    """Resident memory in MiB; pages that processes share count in each."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def read_epoch(loader: TrainLoader, batch: int, epoch: int) -> tuple[float, int, list[float]]:
    """Images a second, bytes an image, and memory in the middle of the epoch."""
    size, memory, began = 0, [], time.perf_counter()
    for place, crops in enumerate(loader.read(epoch)):
        if place == len(loader) // 2:
            size = sum(field.nbytes for field in crops if isinstance(field, Tensor)) // batch
            memory = [read_memory(child.pid) for child in multiprocessing.active_children()]
    return len(loader) * batch / (time.perf_counter() - began), size, memory


def main() -> None:
    """Measure."""
    folder, *rest = sys.argv[1:]
    batch, rounds = (int(word) for word in (*rest, *("16", "3")[len(rest) :]))
    ways = {"device": None, "host": Normalization()}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, tuple[int, list[float]]] = {}
    for epoch in range(rounds):
        for way, normalization in ways.items():
            loader = build(folder, batch, normalization)
            read_epoch(loader, batch, epoch)  # starts the loaders
            rate, *found[way] = read_epoch(loader, batch, epoch)
            rates[way].append(rate)
            del loader
    for way, (size, memory) in found.items():
        spread = [
            round(part, 1)
            for part in (statistics.median(rates[way]), min(rates[way]), max(rates[way]))
        ]
        line = {
            "augment_on": way,
            "images_per_second": spread,
            "bytes_per_image": size,
            "workers_mib": memory,
        }
        print(
            json.dumps(
                {
                    **line,
                    "parent_mib": read_memory(os.getpid()),
                    "load": round(os.getloadavg()[0], 2),
                }
            )
        )


if __name__ == "__main__":
    main()
