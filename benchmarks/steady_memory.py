"""Whether a long run keeps its memory, open files and threads: a training of the demo, measured at two steps.

    python benchmarks/steady_memory.py [first] [last]          # steps 500 and 3000

Prints one JSON line: for both steps the memory in MiB that the main process and each of its loaders
have for themselves (private pages that they wrote), their open files and their threads; then the
largest relative growth. The exit code is 1 if it exceeds 2 %. Clean private pages do not count:
they are code of libraries, and private only as long as no other program uses the same library. Nor
do the files of a batch in shared memory, which is on its way or not.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from dino.cli.pretrain import main as pretrain  # noqa: E402
from dino.data.loaders import TrainLoader  # noqa: E402

WORKERS, MOST = 2, 0.02
BATCHES = "/dev/shm/torch_"  # names of a batch's tensors
RUN = (
    *("--data_path", "demo", "--device", "cpu", "--arch", "vit_micro", "--patch_size", "8"),
    *("--global_crops_size", "16", "--local_crops_size", "8", "--local_crops_number", "2"),
    *(
        "--out_dim",
        "64",
        "--batch_size_per_device",
        "8",
        "--epochs",
        "1000",
        "--warmup_epochs",
        "0",
    ),
    # As in the demo, the first epochs and their checkpoints lie before the first measurement.
    *("--data_limit", "2000", "--saveckp_freq", "0", "--num_workers", str(WORKERS)),
)


class Measured(Exception):
    """The last step was measured."""


def measure(process: int) -> dict[str, float]:
    """Written private memory in MiB, open files and threads of a process."""
    place = Path("/proc", str(process))
    lines = (place / "smaps_rollup").read_text().splitlines()
    private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
    files = [os.path.realpath(path) for path in (place / "fd").iterdir()]
    return {
        "private": round(private / 1024, 2),
        "files": sum(not path.startswith(BATCHES) for path in files),
        "threads": len(list((place / "task").iterdir())),
    }


def measure_all() -> list[dict[str, float]]:
    """The main process, then its loaders in the order of their start."""
    loaders = sorted(child.pid or 0 for child in multiprocessing.active_children())
    return [measure(process) for process in (os.getpid(), *loaders)]


def watch(steps: tuple[int, int], found: dict[int, list[dict[str, float]]]) -> None:
    """Measure when a run asks for the batch after each of the steps, and end it after the last."""
    plain, done = TrainLoader.read, 0

    def read(loader: TrainLoader, epoch: int, start: int = 0) -> Iterator[Any]:
        nonlocal done
        for batch in plain(loader, epoch, start):
            if done in steps:
                found[done] = measure_all()
            if done == steps[-1]:
                raise Measured
            yield batch
            done += 1

    TrainLoader.read = read  # type: ignore[method-assign]


def main(first: int = 500, last: int = 3000) -> None:
    """Train, measure, print."""
    found: dict[int, list[dict[str, float]]] = {}
    watch((first, last), found)
    with tempfile.TemporaryDirectory() as folder:
        try:
            pretrain([*RUN, "--output_dir", folder])
        except Measured:
            pass
    growth = max(
        later[name] / before[name] - 1
        for before, later in zip(found[first], found[last], strict=True)
        for name in before
    )
    print(json.dumps({"steps": found, "growth": round(growth, 4)}))
    sys.exit(growth > MOST)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
