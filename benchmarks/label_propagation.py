"""Label propagation of one 480p frame: the product beside the textbook way, which compares all positions with all.

    python benchmarks/label_propagation.py [--patch_size 8 16] [--threads 1] [--frames 5] [--rounds 3]

Features are given (width 384, 8 context frames, 3 labels, neighborhood 12, top 5); what is measured
is what follows them, up to the soft labels of the frame. Each way runs in processes of its own, in
turn, so that each one's peak memory is its own. Prints one JSON line a patch size: milliseconds a
frame (median and 10-90 %), milliseconds once for the neighborhood mask, peak memory of the process
in MB and what of it came on top of the inputs, ratios, and the largest difference between the two
results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

HEIGHT, WIDTH = 480, 832  # pixels, of an 854 x 480 frame
DIM, CONTEXT, LABELS, RADIUS, TOPK = 384, 8, 3, 12, 5
NOISE = 0.3  # of a frame's features around what all frames share, in standard deviations


def main() -> None:
    """Measure both ways, or, as one of the processes, one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patch_size", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way")
    parser.add_argument("--way", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments)))
        return
    for patch_size in arguments.patch_size:
        print(json.dumps(compare(patch_size, arguments)), flush=True)


def compare(patch_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the processes of both ways in turn and join their figures."""
    import torch

    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for way in WAYS:
                words = ["--way", way, "--patch_size", patch_size, "--frames", arguments.frames]
                words += ["--threads", arguments.threads, "--result", f"{folder}/{way}.pt"]
                environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
                command = [sys.executable, __file__, *map(str, words)]
                ended = subprocess.run(
                    command, env=environment, capture_output=True, text=True, check=True
                )
                found[way].append(json.loads(ended.stdout))
        results = [torch.load(f"{folder}/{way}.pt") for way in WAYS]
    figures = {way: join(rounds) for way, rounds in found.items()}
    textbook, product = figures["textbook"], figures["product"]
    names = ("ms a frame", "peak MB", "MB on top")
    return {
        "patch": patch_size,
        "threads": arguments.threads,
        **figures,
        **{f"ratio, {name}": round(textbook[name] / product[name], 1) for name in names},
        "largest difference": float((results[0] - results[1]).abs().max()),
    }


def join(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and the spread of single frames."""
    frames = [1e3 * seconds for found in rounds for seconds in found["frames"]]
    deciles = statistics.quantiles(frames, n=10)
    return {
        "ms a frame": round(statistics.median(frames), 1),
        "ms a frame 10-90 %": [round(deciles[0], 1), round(deciles[-1], 1)],
        "ms for the mask": round(1e3 * statistics.median(found["mask"] for found in rounds), 1),
        "peak MB": round(statistics.median(found["peak"] for found in rounds)),
        "MB on top": round(statistics.median(found["peak"] - found["before"] for found in rounds)),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One process: seconds of each frame, seconds for the mask, MB before and at the peak."""
    import torch

    torch.set_num_threads(arguments.threads)
    grid = (HEIGHT // arguments.patch_size[0], WIDTH // arguments.patch_size[0])
    torch.manual_seed(0)
    shared = torch.randn(*grid, DIM)
    features = torch.empty(CONTEXT + 1, *grid, DIM)
    for frame in features:
        torch.nn.functional.normalize(shared + NOISE * torch.randn(*grid, DIM), dim=-1, out=frame)
    labels = torch.rand(CONTEXT, *grid, LABELS).softmax(dim=-1)
    before, began = read_peak(), time.perf_counter()
    step = WAYS[arguments.way](features[:CONTEXT], labels)
    mask, frames = time.perf_counter() - began, []
    for _ in range(1 + arguments.frames):
        began = time.perf_counter()
        found = step(features[CONTEXT])
        frames.append(time.perf_counter() - began)
    torch.save(found, arguments.result)
    return {"mask": mask, "frames": frames[1:], "before": before, "peak": read_peak()}


def read_peak() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build_product(features: Any, labels: Any) -> Callable[[Any], Any]:
    """What the commands run."""
    from dino.evaluation.video_segmentation.propagation import Context, plan_tiles, propagate_labels

    context = Context(features[0], labels[0], last=CONTEXT - 1)
    for earlier, its_labels in zip(features[1:], labels[1:], strict=True):
        context.add(earlier, its_labels)
    tiles = plan_tiles(features.shape[1:3], RADIUS, features.device)
    return lambda frame: propagate_labels(frame, context, tiles, topk=TOPK)


def build_textbook(features: Any, labels: Any) -> Callable[[Any], Any]:
    """As the method is described: all similarities, those outside the neighborhood blanked, the best kept, a product.

    The mask is built at once, without loops; in loops over its four indices it takes seconds.
    """
    import torch

    height, width = features.shape[1:3]
    rows, columns = torch.arange(height), torch.arange(width)
    near_rows, near_columns = ((side[:, None] - side).abs() <= RADIUS for side in (rows, columns))
    near = near_rows[:, None, :, None] & near_columns[None, :, None, :]
    mask = near.reshape(height * width, height * width).float()
    sources = features.reshape(CONTEXT, height * width, DIM).transpose(1, 2).contiguous()
    known = labels.reshape(-1, LABELS).T.contiguous()

    @torch.inference_mode()
    def step(frame: Any) -> Any:
        target = frame.reshape(1, -1, DIM).repeat(CONTEXT, 1, 1)
        affinity = torch.exp(torch.bmm(target, sources) / 0.1)
        affinity *= mask
        affinity = affinity.transpose(1, 2).reshape(
            -1, height * width
        )  # keys of all frames x queries
        least = affinity.topk(TOPK, dim=0).values.amin(dim=0)
        affinity[affinity < least] = 0
        affinity = affinity / affinity.sum(dim=0, keepdim=True)
        return (known @ affinity).T.reshape(height, width, LABELS)

    return step


WAYS: dict[str, Callable[[Any, Any], Callable[[Any], Any]]] = {
    "textbook": build_textbook,
    "product": build_product,
}


if __name__ == "__main__":
    main()
