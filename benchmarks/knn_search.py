"""Nearest neighbors of k-NN classification beside the textbook way and faiss, in one run.

    python benchmarks/knn_search.py [train] [queries] [k] [--device cuda]          # 50000 5000 20, on the CPU

Features are 384 wide, of length 1, around 1000 centers. Prints one JSON line: the medians and
ranges of several rounds in seconds, taken in turn, and for which share of the queries a way finds
the same neighbors as the textbook, at least.
Ways: `textbook` is the original's, 100 chunks of a product and a topk; `products` are these
products alone; `faiss` is its flat index, built anew each time, as ours is, on the CPU only; `ours`
is the index that evaluations use, in their chunks. All vectors lie on the device at first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import faiss  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from dino.devices import open_device  # noqa: E402
from dino.devices.config import DeviceConfig  # noqa: E402
from dino.evaluation.neighbors import ExactIndex, split_queries  # noqa: E402

WIDTH, CENTERS, ROUNDS, SPREAD = 384, 1000, 5, 1.0


def draw(count: int, generator: torch.Generator) -> Tensor:
    """(count, WIDTH) float32 vectors of length 1."""
    centers = torch.randn(CENTERS, WIDTH, generator=torch.Generator().manual_seed(0))
    own = centers[torch.randint(CENTERS, (count,), generator=generator)]
    return F.normalize(own + SPREAD * torch.randn(count, WIDTH, generator=generator), dim=1)


def search_in_chunks(index: ExactIndex, queries: Tensor, k: int) -> Tensor:
    """Places (M, k) as `predict_classes` finds them, chunk by chunk."""
    chunks = split_queries(queries, len(index.vectors))
    return torch.cat(
        [index.search(chunk.to(queries.device), k).places[:count] for chunk, count in chunks]
    )


def search_as_the_original(train: Tensor, queries: Tensor, k: int) -> Tensor:
    """Places (M, k): a hundredth of the queries at a time."""
    return torch.cat([(chunk @ train.T).topk(k, dim=1).indices for chunk in queries.chunk(100)])


def search_by_faiss(train: Tensor, queries: Tensor, k: int) -> Tensor:
    """Places (M, k) by a flat index."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train.numpy())
    return torch.from_numpy(index.search(queries.numpy(), k)[1])


def parse_words() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("train", 50000), ("queries", 5000), ("k", 20)):
        parser.add_argument(name, nargs="?", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args()


def build_ways(train: Tensor, queries: Tensor, k: int) -> dict[str, Callable[[], Tensor | None]]:
    """What is measured, by name."""
    ways: dict[str, Callable[[], Tensor | None]] = {
        "textbook": lambda: search_as_the_original(train, queries, k),
        "products": lambda: [chunk @ train.T for chunk in queries.chunk(100)] and None,
        "faiss": lambda: search_by_faiss(train, queries, k),
        "ours": lambda: search_in_chunks(ExactIndex(train), queries, k),
    }
    return (
        ways
        if train.device.type == "cpu"
        else {name: way for name, way in ways.items() if name != "faiss"}
    )


def main() -> None:
    """Measure."""
    words = parse_words()
    device, generator, k = (
        open_device(DeviceConfig(device=words.device)),
        torch.Generator().manual_seed(1),
        words.k,
    )
    train, queries = (
        device.to_device(draw(count, generator)) for count in (words.train, words.queries)
    )
    ways = build_ways(train, queries, k)
    expected = search_as_the_original(train, queries, k).sort(dim=1).values
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    same = 1.0
    for _ in range(ROUNDS):
        for name, search in ways.items():
            device.synchronize()
            began = time.perf_counter()
            found = search()
            device.synchronize()
            seconds[name].append(time.perf_counter() - began)
            if found is not None:
                same = min(
                    same, (found.sort(dim=1).values == expected).all(dim=1).float().mean().item()
                )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                **{"train": words.train, "queries": words.queries, "k": k},
                **{"device": words.device, "threads": torch.get_num_threads()},
                "seconds": {
                    name: [round(part, 5) for part in (medians[name], min(values), max(values))]
                    for name, values in seconds.items()
                },
                "times_faster_than": {
                    name: round(medians[name] / medians["ours"], 2) for name in ways
                },
                "same_neighbours": same,
            }
        )
    )


if __name__ == "__main__":
    main()
