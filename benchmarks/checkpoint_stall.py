"""How long a step waits for a checkpoint, beside the original's way: torch.save between two steps.

    python benchmarks/checkpoint_stall.py [--arch vit_base] [--saves 5]

Trains on a few tiny images of the demo and saves after each step, so that the checkpoint has the
size of a real run (ViT-B, 65,536 prototypes) and a step takes little. Prints one JSON line: the size
of the file, the median and the largest seconds of the original's save, of the wait of a step, and of
the write beside it, and the resident memory in MiB before the first save and at its peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from dino import checkpoint  # noqa: E402
from dino.cli.pretrain import main as pretrain  # noqa: E402
from dino.training.saving import Saver  # noqa: E402
from dino.training.trainer import Trainer  # noqa: E402

TINY = (
    *("--data_path", "demo", "--device", "cpu", "--patch_size", "16", "--num_workers", "0"),
    *("--global_crops_size", "32", "--local_crops_number", "0", "--warmup_epochs", "0"),
    *("--batch_size_per_device", "2", "--epochs", "1", "--save_every_steps", "1"),
)


def main() -> None:
    """Train, save, and print what each way took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vit_base")
    parser.add_argument("--saves", type=int, default=5)
    words = parser.parse_args()
    seconds: dict[str, list[float]] = {"original": [], "wait": [], "write": []}
    memory: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        watch(seconds, memory, Path(folder) / "original.pth")
        limit = str(2 * words.saves)
        pretrain([*TINY, "--arch", words.arch, "--data_limit", limit, "--output_dir", folder])
        size = (Path(folder) / checkpoint.LATEST).stat().st_size
    table = {
        name: {"median": round(statistics.median(each), 2), "largest": round(max(each), 2)}
        for name, each in seconds.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    memories = {"before": memory[0], "peak": peak}
    print(json.dumps({"arch": words.arch, "file_mb": size // 2**20, **table, "rss_mb": memories}))


def watch(seconds: dict[str, list[float]], memory: list[int], path: Path) -> None:
    """Time each save of a trainer, each write, and before each the original's save."""
    save, begin = Trainer._save, Saver.begin

    def save_both(trainer: Trainer, numbered: int | None = None) -> bool:
        trainer.saver.wait()  # the one before it would be part of what is timed
        memory.append(read_resident())
        state: dict[str, Any] = trainer._state()
        timed("original", lambda: torch.save(state, path))
        path.unlink()
        return timed("wait", lambda: save(trainer, numbered))

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = work()
        seconds[name].append(time.monotonic() - began)
        return result

    def begin_timed(saver: Saver, state: Any, *, written: Callable[[], None], **more: Any) -> None:
        began = time.monotonic()

        def note() -> None:
            written()
            seconds["write"].append(time.monotonic() - began)

        begin(saver, state, written=note, **more)

    Trainer._save = save_both  # type: ignore[method-assign]
    Saver.begin = begin_timed  # type: ignore[method-assign]


def read_resident() -> int:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


if __name__ == "__main__":
    main()
