"""Parts of a large run, measured on one small machine: what docs/scale.md extrapolates from.

    python benchmarks/scale.py listing [--images 20000]     # folders and shards: seconds per million
    python benchmarks/scale.py store [--clients 4]          # requests a second that one store serves
    python benchmarks/scale.py processes [--count 16]       # store, collectives, start and restart

`listing` scans class folders and the same names in tar shards, and reads both again. `processes`
starts that many trainings of one tiny run with a tenth of the original's prototypes, stops them, and
starts half as many, which continue inside the epoch. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

MILLION = 1_000_000
CLASSES, SHARDS = 100, 10
ASKED = 5.0  # seconds
STEPS = (10, 60)  # between these the requests are counted
TINY = (
    *("--data_path", "demo", "--device", "cpu", "--arch", "vit_micro", "--patch_size", "8"),
    *("--global_crops_size", "16", "--local_crops_size", "8", "--local_crops_number", "2"),
    *("--out_dim", "6554", "--epochs", "1", "--warmup_epochs", "0", "--num_workers", "0"),
    *("--own_view_images", "0", "--draw_pictures", "false", "--save_every_steps", "70"),
)
GLOBAL_BATCH = 16


def main() -> None:
    """Run one part, or one process of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True)
    listing = parts.add_parser("listing")
    listing.add_argument("--images", type=int, default=20_000)
    listing.set_defaults(run=measure_listing)
    store = parts.add_parser("store")
    store.add_argument("--clients", type=int, default=4)
    store.set_defaults(run=measure_store)
    processes = parts.add_parser("processes")
    processes.add_argument("--count", type=int, default=16)
    processes.set_defaults(run=measure_processes)
    worker = parts.add_parser("worker")
    worker.add_argument("--found", type=Path, required=True)
    worker.add_argument("--stop_at", type=int, default=0)
    worker.set_defaults(run=work)
    words, rest = parser.parse_known_args()
    words.rest = rest
    words.run(words)


def measure_listing(words: argparse.Namespace) -> None:
    """Scan folders and shards of that many names."""
    from dino.data.sources import open_images

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"], tempfile.tempdir = f"{folder}/cache", folder
        names = [f"{i % CLASSES:03}/{i:08}.jpg" for i in range(words.images)]
        make_folders(Path(folder, "images"), names)
        make_shards(Path(folder), names)
        for kind, path in (("folders", f"{folder}/images"), ("shards", f"{folder}/{{0..9}}.tar")):
            for state in ("first", "again"):
                began = time.monotonic()
                source = open_images(path)
                digest, seconds = source.fingerprint(), time.monotonic() - began
                line = {"kind": kind, "state": state, "images": len(source), "digest": digest[:8]}
                line["seconds_per_million"] = round(seconds / len(source) * MILLION, 1)
                print(json.dumps(line), flush=True)


def make_folders(root: Path, names: list[str]) -> None:
    """Empty files in class folders."""
    for number in range(CLASSES):
        (root / f"{number:03}").mkdir(parents=True)
    for name in names:
        (root / name).touch()


def make_shards(root: Path, names: list[str]) -> None:
    """Tars with members of one byte."""
    for number in range(SHARDS):
        with tarfile.open(root / f"{number}.tar", "w") as tar:
            for name in names[number::SHARDS]:
                member = tarfile.TarInfo(name)
                member.size = 1
                tar.addfile(member, io.BytesIO(b"x"))


def measure_store(words: argparse.Namespace) -> None:
    """Let clients in processes of their own ask one store as fast as it answers."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    with context.Pool(words.clients) as pool:
        counts = pool.map(ask_store, [store.port] * words.clients, chunksize=1)
    print(json.dumps({"clients": words.clients, "requests_per_second": round(sum(counts) / ASKED)}))


def ask_store(port: int) -> int:
    """Requests that were answered in the time."""
    import torch.distributed as dist

    store, count = dist.TCPStore("127.0.0.1", port, is_master=False), 0
    ends = time.monotonic() + ASKED
    while time.monotonic() < ends:
        store.add("news", 0)
        count += 1
    return count


def measure_processes(words: argparse.Namespace) -> None:
    """Start the processes; stop them inside the epoch; continue with half of them."""
    with tempfile.TemporaryDirectory() as folder:
        for state, count, stop_at in (
            ("start", words.count, 70),
            ("restart on half", words.count // 2, 0),
        ):
            found = Path(folder, state.replace(" ", "_"))
            found.mkdir()
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            launch += ["--nproc_per_node", str(count), __file__, "worker", "--found", str(found)]
            launch += ["--stop_at", str(stop_at), *TINY, "--output_dir", f"{folder}/run"]
            launch += ["--batch_size_per_device", str(GLOBAL_BATCH // count)]
            launch += ["--data_limit", str(GLOBAL_BATCH * 140)]
            began = time.time()
            ended = subprocess.run(launch, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
            lines = [json.loads(path.read_text()) for path in sorted(found.iterdir())]
            print(json.dumps(summarize(state, lines, began) | {"code": ended.returncode}))


def summarize(state: str, lines: list[dict[str, Any]], began: float) -> dict[str, Any]:
    """Figures of one start from those of its processes."""
    requests: Counter[str] = Counter()
    for line in lines:
        requests.update(line["requests"])
    count, seconds = len(lines), max(line["seconds"] for line in lines)
    return {
        "state": state,
        "processes": count,
        "seconds_to_first_step": round(max(line["first"] for line in lines) - began, 1),
        "first_iteration": lines[0]["begins_at"],
        "seconds_per_step": round(seconds / (STEPS[1] - STEPS[0]), 4),
        "requests_per_process_and_second": round(sum(requests.values()) / count / seconds, 2),
        "requests": dict(requests),
    }


def work(words: argparse.Namespace) -> None:
    """One process: train, and count its requests to the store between two steps."""
    import torch.distributed as dist

    from dino.cli.pretrain import main as pretrain
    from dino.training.trainer import Trainer

    after, counts, seen = Trainer._after_step, Counter[str](), dict[str, Any]()
    for store in (dist.TCPStore, dist.PrefixStore):
        for name in ("add", "set", "get", "check", "wait"):
            count_calls(store, name, counts)

    def see(trainer: Trainer) -> None:
        done = trainer.iteration - seen.setdefault("begins_at", trainer.iteration - 1)
        seen.setdefault("first", time.time())
        if done == STEPS[0]:
            counts.clear()
            seen["seconds"] = time.monotonic()
        if done == STEPS[1]:
            seen["seconds"] = time.monotonic() - seen["seconds"]
            path = words.found / f"{trainer.run.processes.rank:03}.json"
            path.write_text(json.dumps({**seen, "requests": counts}))
        if trainer.iteration == words.stop_at:
            trainer.stop.signal = signal.SIGTERM
        after(trainer)

    Trainer._after_step = see  # type: ignore[method-assign]
    pretrain(words.rest)


def count_calls(store: type, name: str, counts: Counter[str]) -> None:
    """Count the calls of a method of the store."""
    call = getattr(store, name)

    def counted(*given: Any) -> Any:
        counts[name] += 1
        return call(*given)

    setattr(store, name, counted)


if __name__ == "__main__":
    main()
