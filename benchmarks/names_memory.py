"""What the names of images cost in memory, beside the usual list of pairs in each loader process.

    python benchmarks/names_memory.py [images]          # 1300000

Every rank opens a place with so many images (names and classes as in ImageNet, without files) and
starts its loader processes, which then read all names and labels. The textbook's are `samples` of
torchvision's ImageFolder: a list of tuples (path, class).

Measured is what each process has for itself (USS: private pages, clean and dirty) while all are
there, minus the same with one image. Prints one JSON line with megabytes of a rank and of a loader,
for 1 rank with 10 loaders and 2 ranks with 5, and the total of 8 ranks with 10 loaders each:
8 x rank + 80 x loader + shared, with the largest rank and loader of both, where `shared` is the
file that they map.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from dino.data.image_source import ImageSource  # noqa: E402
from dino.data.index import Enter, Stamp  # noqa: E402
from dino.data.kept import find_folder, list_once  # noqa: E402
from dino.data.splits import label_by_folder  # noqa: E402

IMAGES, CLASSES = 1_300_000, 1000
LAYOUTS = ((1, 10), (2, 5))  # ranks, loaders of each
TARGET = (8, 10)
STARTS = ("fork", "forkserver")  # of loaders: on most devices, on Gaudi
ROOT = "/data/imagenet/train"
MEGABYTE = 1e6
PATIENCE = 1800  # seconds until a rank gives up on the others

Samples = Sequence[tuple[str, int]]


class Ours(Dataset[int]):
    """Names as a run has them."""

    def __init__(self, images: int) -> None:
        """Open them as a rank does."""
        self.source = list_once(
            "benchmark", Path(ROOT), (str(images),), lambda enter: _list(images, enter)
        )

    def __getitem__(self, _loader: int) -> int:
        """Read all of them, and return the number of this process."""
        assert self.source.labels is not None
        return _read(zip(self.source.names, self.source.labels, strict=True))


class Textbook(Dataset[int]):
    """Names as ImageFolder has them."""

    def __init__(self, images: int) -> None:
        """Make the list."""
        names, labels = _make(images)
        self.samples = [
            (f"{ROOT}/{name}", label) for name, label in zip(names, labels, strict=True)
        ]

    def __getitem__(self, _loader: int) -> int:
        """Read all of them, and return the number of this process."""
        return _read(self.samples)


def _make(images: int) -> tuple[list[str], Sequence[int]]:
    names = [f"n{10**7 + i % CLASSES}/n{10**7 + i % CLASSES}_{i}.JPEG" for i in range(images)]
    labels, _ = label_by_folder(names)
    assert labels is not None
    return names, labels


def _list(images: int, enter: Enter) -> tuple[ImageSource, dict[str, Stamp]]:
    if images > 1:
        enter()
    names, labels = _make(images)
    return ImageSource(root=Path(ROOT), names=names, labels=labels), {}


def _read(samples: Iterable[tuple[str, int]]) -> int:
    for name, label in samples:
        assert name
        assert label >= 0
    return os.getpid()


def measure(process: int) -> float:
    """USS in megabytes."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return (
        sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / MEGABYTE
    )


def open_loaders(dataset: Dataset[int], loaders: int, start: str) -> DataLoader[int]:
    """Loader processes that all stay, each for one item."""
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["__main__"])
    return DataLoader(
        dataset,
        sampler=range(loaders),
        batch_size=None,
        num_workers=loaders,
        prefetch_factor=1,
        persistent_workers=True,
        multiprocessing_context=context,
    )


def run_rank(
    kind: type[Any], counts: Sequence[int], loaders: int, start: str, all_read: Barrier, answer: Any
) -> None:
    """Send the USS of this process, and the largest of its loaders, for each number of images."""
    for images in counts:
        loader = open_loaders(kind(images), loaders, start)
        workers = {int(worker) for worker in loader}
        assert len(workers) == loaders
        all_read.wait(PATIENCE)
        answer.send((measure(os.getpid()), max(map(measure, workers))))
        all_read.wait(PATIENCE)
        del loader


def run_ranks(
    kind: type[Any], images: int, layout: tuple[int, int], start: str
) -> dict[str, float]:
    """What the names cost a rank and a loader, the larger of all."""
    ranks, loaders = layout
    context = multiprocessing.get_context("fork")
    all_read, (receiver, sender) = context.Barrier(ranks), context.Pipe(duplex=False)
    arguments = (kind, (1, images), loaders, start, all_read, sender)
    processes = [context.Process(target=run_rank, args=arguments) for _ in range(ranks)]
    for process in processes:
        process.start()
    sender.close()  # a rank that fails ends the program
    one, many = (np.max([receiver.recv() for _ in processes], axis=0) for _ in range(2))
    for process in processes:
        process.join()
    rank, loader = (many - one).round(1).tolist()
    return {"rank": rank, "loader": loader}


def compare(kind: type[Any], images: int, start: str) -> dict[str, Any]:
    """Megabytes that the names cost in every layout, and those of the target."""
    result: dict[str, Any] = {
        f"{layout[0]}x{layout[1]}": run_ranks(kind, images, layout, start) for layout in LAYOUTS
    }
    rank, loader = (max(costs[name] for costs in result.values()) for name in ("rank", "loader"))
    files = [path.stat().st_size for path in find_folder().glob("*")] if kind is Ours else [0]
    shared = round(max(files) / MEGABYTE, 1)
    ranks, loaders = TARGET
    total = ranks * rank + ranks * loaders * loader + shared
    return {**result, "shared": shared, f"{ranks}x{loaders}": round(total)}


def main(images: int = IMAGES) -> None:
    """Measure all, print."""
    os.environ["TMPDIR"] = folder = tempfile.mkdtemp()
    tempfile.tempdir = folder
    try:
        megabytes = {
            kind.__name__.lower(): {start: compare(kind, images, start) for start in STARTS}
            for kind in (Ours, Textbook)
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"images": images, "megabytes": megabytes}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
