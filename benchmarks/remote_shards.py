"""The training loader on shards behind a URL, whose server answers 50 ms late, beside the same shards on a disk.

    nice -n 5 python benchmarks/remote_shards.py [loaders] [rounds] [images]     # 1 loader, 5 rounds, 768 images

Shards of JPEGs of about 100 KB, made for the occasion; a web server with ranges in a process of its
own. The ways take turns, each round is an epoch, and its first batches, before all loaders fetch
ahead, do not count. Prints one JSON line: images a second by the clock and milliseconds of CPU an
image in the loader processes (medians over the rounds), and the medians of each round's quotients
to the disk: of speed, and of CPU time, which says what the ratio is where loaders are the limit and
nothing else runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from dino.data.crops import CropRecipe  # noqa: E402
from dino.data.datasets import CropDataset, Share  # noqa: E402
from dino.data.loaders import TrainLoader, build_train_loader  # noqa: E402
from dino.data.packing import Packing, pack_images  # noqa: E402
from dino.data.sources import open_images  # noqa: E402
from tests.range_server import serve  # noqa: E402

LATENCY, BATCH, SHARD = 0.05, 32, 128  # s, images, images
DIFFERENT = 64  # pictures; the others repeat them


def make_shards(folder: Path, count: int) -> Path:
    """Pack noisy pictures of 500 x 375."""
    images, shards, rng = folder / "images", folder / "shards", np.random.default_rng(0)
    images.mkdir()
    for number in range(min(count, DIFFERENT)):
        small = rng.integers(0, 256, (75, 100, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        noise = rng.normal(0, 12, (375, 500, 3))
        levels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(images / f"{number:05}.jpg", quality=90)
    for number in range(DIFFERENT, count):
        os.link(images / f"{number % DIFFERENT:05}.jpg", images / f"{number:05}.jpg")
    shards.mkdir()
    list(pack_images(open_images(str(images)), shards, Packing(SHARD), workers=2))
    return shards


def run_server(folder: Path, pipe: multiprocessing.connection.Connection) -> None:
    """Serve until the pipe closes."""
    with serve(folder, LATENCY) as server:
        pipe.send(server.url)
        while True:
            server.asked.clear()
            if pipe.poll(1):
                return


def build(data_path: str, workers: int) -> TrainLoader:
    """The loader that training builds."""
    dataset = CropDataset(open_images(data_path), CropRecipe(), seed=0, skip_bad=False)
    return build_train_loader(
        dataset, batch_size=BATCH, share=Share(), workers=workers, pin_memory=False
    )


def read_cpu(processes: list[int]) -> float:
    """Seconds that all threads of these processes computed."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def read_epoch(loader: TrainLoader, epoch: int) -> tuple[float, float]:
    """Images a second, and seconds of CPU an image."""
    warm = 2 * loader.workers
    began = cpu = 0.0
    processes: list[int] = []
    for place, _ in enumerate(loader.read(epoch)):
        if place == warm - 1:
            processes = [worker.pid for worker in loader.loader._iterator._workers]
            began, cpu = time.perf_counter(), read_cpu(processes)
    images = (len(loader) - warm) * BATCH
    return images / (time.perf_counter() - began), (read_cpu(processes) - cpu) / images


def main() -> None:
    """Measure three ways in turn."""
    workers, rounds, count = (
        int(word) for word in (sys.argv[1:] + ["1", "5", "768"][len(sys.argv) - 1 :])
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DINO_CACHE_DIR"] = name
        shards = make_shards(folder, count)
        here, there = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(
            target=run_server, args=(shards, there)
        )
        server.start()
        names = f"shards-{{000000..{(count - 1) // SHARD:06}}}.tar".replace(
            "shards-", f"{'images'}-"
        )
        url = f"{here.recv()}/{names}"
        loaders = {}
        for way, path, limit in (
            ("disk", str(shards / names), "0"),
            ("url", url, "0"),
            ("url, from the cache", url, "2G"),
        ):
            os.environ["DINO_CACHE_LIMIT"] = limit
            loaders[way] = build(path, workers)
            read_epoch(loaders[way], 0)  # the loaders start, and the cache fills
        figures: dict[str, list[tuple[float, float]]] = {way: [] for way in loaders}
        for epoch in range(1, rounds + 1):
            for way, loader in loaders.items():
                figures[way].append(read_epoch(loader, epoch))
        report(figures, workers, shards)
        here.send("end")
        server.join()


def report(figures: dict[str, list[tuple[float, float]]], workers: int, shards: Path) -> None:
    """Print medians and quotients."""
    sizes = [path.stat().st_size for path in shards.glob("*.tar")]
    ways = {}
    for way, rounds in figures.items():
        quotients = list(zip(rounds, figures["disk"], strict=True))
        ways[way] = {
            "images_per_s": round(statistics.median(speed for speed, _ in rounds), 1),
            "cpu_ms_per_image": round(1000 * statistics.median(cpu for _, cpu in rounds), 2),
            "speed_to_disk": round(statistics.median(a[0] / b[0] for a, b in quotients), 3),
            "cpu_disk_to_this": round(statistics.median(b[1] / a[1] for a, b in quotients), 3),
        }
    facts = {"latency_ms": 1000 * LATENCY, "loaders": workers, "rounds": len(figures["disk"])}
    print(json.dumps({**facts, "megabytes": round(sum(sizes) / 1e6, 1), "ways": ways}))


if __name__ == "__main__":
    main()
