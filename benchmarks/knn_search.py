"""Nearest neighbours of k-NN classification beside the textbook way and faiss, in one run.

    python benchmarks/knn_search.py [train] [queries] [k]          # 50000 5000 20

Features are 384 wide, of length 1, around 1000 centres. Prints one JSON line: the medians and ranges of several rounds
in seconds, taken in turn, and whether all ways find the same neighbours. Ways: `textbook` is the original's, 100 chunks
of a product and a topk; `products` are these products alone; `faiss` is its flat index, built anew each time, as ours
is; `ours` is the index that evaluations use, in their chunks.
"""

from __future__ import annotations

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

from dino.evaluation.neighbours import ExactIndex, split_queries  # noqa: E402

WIDTH, CENTRES, ROUNDS, SPREAD = 384, 1000, 5, 1.0


def draw(count: int, generator: torch.Generator) -> Tensor:
    """(count, WIDTH) float32 vectors of length 1."""
    centres = torch.randn(CENTRES, WIDTH, generator=torch.Generator().manual_seed(0))
    own = centres[torch.randint(CENTRES, (count,), generator=generator)]
    return F.normalize(own + SPREAD * torch.randn(count, WIDTH, generator=generator), dim=1)


def search_in_chunks(index: ExactIndex, queries: Tensor, k: int) -> Tensor:
    """Places (M, k) as `predict_classes` finds them, chunk by chunk."""
    chunks = split_queries(queries, len(index.vectors))
    return torch.cat([index.search(chunk, k).places[:count] for chunk, count in chunks])


def search_as_the_original(train: Tensor, queries: Tensor, k: int) -> Tensor:
    """Places (M, k): a hundredth of the queries at a time."""
    return torch.cat([(chunk @ train.T).topk(k, dim=1).indices for chunk in queries.chunk(100)])


def search_by_faiss(train: Tensor, queries: Tensor, k: int) -> Tensor:
    """Places (M, k) by a flat index."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(train.shape[1])
    index.add(train.numpy())
    return torch.from_numpy(index.search(queries.numpy(), k)[1])


def main() -> None:
    """Measure."""
    count, asked, k = (int(word) for word in (*sys.argv[1:], *("50000", "5000", "20")[len(sys.argv) - 1 :]))
    generator = torch.Generator().manual_seed(1)
    train, queries = draw(count, generator), draw(asked, generator)
    ways: dict[str, Callable[[], Tensor | None]] = {
        "textbook": lambda: search_as_the_original(train, queries, k),
        "products": lambda: [chunk @ train.T for chunk in queries.chunk(100)] and None,
        "faiss": lambda: search_by_faiss(train, queries, k),
        "ours": lambda: search_in_chunks(ExactIndex(train), queries, k),
    }
    expected = search_as_the_original(train, queries, k).sort(dim=1).values
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    same = True
    for _ in range(ROUNDS):
        for name, search in ways.items():
            began = time.perf_counter()
            found = search()
            seconds[name].append(time.perf_counter() - began)
            same = same and (found is None or torch.equal(found.sort(dim=1).values, expected))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                **{"train": count, "queries": asked, "k": k, "threads": torch.get_num_threads()},
                "seconds": {
                    name: [round(part, 3) for part in (medians[name], min(values), max(values))]
                    for name, values in seconds.items()
                },
                "times_faster_than": {name: round(medians[name] / medians["ours"], 2) for name in ways},
                "same_neighbours": same,
            }
        )
    )


if __name__ == "__main__":
    main()
