"""One training step beside the textbook's: images/s, peak memory, host reads, share of each phase, utilisation.

    python benchmarks/train_step.py [--device cpu] [--batch 8] [--precision bf16] [--recompute blocks]

Each way runs in processes of its own, in turn, on the same weights and the same drawn views, which
lie on the device already. The first step is not timed, nor are those before a CUDA graph is
replayed (a graph has no phases). `--precision` is ours; the textbook has fp32
on cpu and hpu and fp16 autocast with loss scaling on cuda. Utilisation is what the method needs
(not what computing again adds) against the rate of a large matrix product in our number format,
measured in the same process. Prints one JSON line a way, and one with the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import profile  # noqa: E402

from benchmarks import textbook_step  # noqa: E402
from dino.cli.options import parse  # noqa: E402
from dino.cli.session import open_session  # noqa: E402
from dino.data.crops import Crops  # noqa: E402
from dino.devices.cuda_graph import WARM_UP  # noqa: E402
from dino.runtime.context import Run  # noqa: E402
from dino.training.build import build_networks, build_program, choose_clipping  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402
from dino.training.dry_run import PhaseClock  # noqa: E402
from dino.training.flops import count_flops, measure_matmul  # noqa: E402
from dino.training.optim import build_optimizer  # noqa: E402
from dino.training.step_values import StepInputs  # noqa: E402

SHAPES = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}
NUMBERS = {"rate": 5e-4, "decay": 0.04, "momentum": 0.996, "temperature": 0.04}
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
DEVICES, PRECISIONS = ("cpu", "cuda", "hpu"), ("fp32", "bf16", "fp16")
Step = Callable[[Callable[[str], None]], float | None]


def parse_words() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--arch", default="vit_small", choices=list(SHAPES))
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cuda_graph", action="store_true")
    parser.add_argument(
        "--recompute", default="auto", choices=["auto", "nothing", "activations", "mlp", "blocks"]
    )
    parser.add_argument(
        "--impl", choices=["textbook", "ours"], help="measure this way, in this process"
    )
    return parser.parse_args()


def draw_views(words: argparse.Namespace, device: torch.device) -> list[Tensor]:
    """Two global and eight local views of each image, float32, ordered by view."""
    generator = torch.Generator().manual_seed(0)
    sides = ((2, 224), (8, 96))
    return [
        torch.randn(count * words.batch, 3, side, side, generator=generator).to(device)
        for count, side in sides
    ]


def build_config(words: argparse.Namespace) -> TrainConfig:
    """Our settings for the paper's crops."""
    line = [
        "--data_path",
        "demo",
        "--device",
        words.device,
        "--arch",
        words.arch,
        "--precision",
        words.precision,
    ]
    line += [
        "--out_dim",
        str(words.prototypes),
        "--drop_path_rate",
        "0",
        "--batch_size_per_device",
        str(words.batch),
    ]
    line += ["--recompute", words.recompute]
    line += ["--compile"] * words.compile + ["--cuda_graph"] * words.cuda_graph
    return parse(TrainConfig, line)


def build_ours(
    words: argparse.Namespace, config: TrainConfig, run: Run
) -> tuple[Step, Callable[[], float]]:
    """Our step as training runs it, phase by phase."""
    student, teacher = build_networks(config, run)
    optimizer = build_optimizer(
        config.optim.optimizer, student, fused=run.device.fuses_updates, eps=config.optim.eps
    )
    program = build_program(config, student, teacher, run)
    device = run.device.torch_device
    views = draw_views(words, device)
    inputs = StepInputs.on_host((*NUMBERS.values(), 1.0))
    pixels = [part.unflatten(0, (-1, words.batch)).transpose(0, 1) for part in views]
    batch = Crops(
        pixels[0],
        torch.zeros(words.batch, 2, 1),
        pixels[1],
        torch.zeros(words.batch, 8, 1),
        torch.zeros(1),
    )
    train = run.device.compile_train(program, optimizer, 1)

    def step(enter: Callable[[str], None]) -> None:
        program.enter = enter
        train(batch, inputs)

    return step, lambda: (program.meters[1] / program.meters[0]).item()


def build_textbook(
    words: argparse.Namespace, config: TrainConfig, run: Run
) -> tuple[Step, Callable[[], float]]:
    """The textbook's step on our network's first weights."""
    dim, depth, heads = SHAPES[words.arch]
    weights = {
        name: part.cpu() for name, part in build_networks(config, run)[0].state_dict().items()
    }

    def build() -> textbook_step.Network:
        backbone = textbook_step.VisionTransformer(
            patch=16, dim=dim, depth=depth, heads=heads, size=224
        )
        network = textbook_step.Network(backbone, textbook_step.Head(dim, words.prototypes))
        network.load_state_dict(weights)
        return network

    half = words.device == "cuda"
    book = textbook_step.Textbook(
        build,
        prototypes=words.prototypes,
        clip=choose_clipping(config.optim, run.device),
        device=run.device.torch_device,
        autocast=lambda: (
            torch.autocast("cuda", dtype=torch.float16) if half else contextlib.nullcontext()
        ),
        scaler=torch.amp.GradScaler("cuda") if half else None,
    )
    views, losses = draw_views(words, run.device.torch_device), []

    def step(enter: Callable[[str], None]) -> None:
        losses.append(book.step(views, **NUMBERS, enter=enter))

    return step, lambda: statistics.mean(losses)


def measure(words: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    config = build_config(words)
    with open_session(config, precision=config.precision) as run:
        device = run.device
        before = read_memory(run)
        step, tell = (build_ours if words.impl == "ours" else build_textbook)(words, config, run)
        for _ in range(1 + WARM_UP * words.cuda_graph):
            step(lambda name: None)
        clock, seconds = PhaseClock(device.synchronize), []
        for _ in range(words.steps):
            device.synchronize()
            began = time.perf_counter()
            step(lambda name: None)
            device.synchronize()
            seconds.append(time.perf_counter() - began)
        memory = read_memory(run) - before
        clock.enter("views")
        step(clock.enter)
        clock.enter("")
        with profile() as events:
            step(lambda name: None)
            device.synchronize()
        found = {event.key: event.count for event in events.key_averages()}
        product = measure_matmul(device)
    rate, whole = words.batch / statistics.median(seconds), sum(clock.seconds.values())
    return {
        "impl": words.impl,
        "loss": round(tell(), 5),
        "images_per_second": round(rate, 3),
        "spread": [round(words.batch / part, 3) for part in (max(seconds), min(seconds))],
        "peak_memory_mb": round(memory / 1e6),
        "host_reads": found.get("aten::_local_scalar_dense", 0),
        "launches": sum(count for name, count in found.items() if name.startswith(LAUNCHES)),
        "phases": {name: round(part / whole, 3) for name, part in clock.seconds.items()},
        "utilisation": round(count_flops(config) * rate / product, 3),
        "product_tflops": round(product / 1e12, 3),
    }


def read_memory(run: Run) -> int:
    """Bytes at most so far: of the card, or of this process."""
    return run.device.memory_peak() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure one way here, or both in turn in other processes."""
    words = parse_words()
    if words.impl:
        print(json.dumps(measure(words)))
        return
    runs: dict[str, list[dict[str, Any]]] = {"textbook": [], "ours": []}
    for _ in range(words.rounds):
        for impl, found in runs.items():
            line = subprocess.run(
                [sys.executable, *sys.argv, "--impl", impl], check=True, stdout=subprocess.PIPE
            )
            found.append(json.loads(line.stdout.splitlines()[-1]))
            print(json.dumps({**found[-1], "load": round(os.getloadavg()[0], 2)}), flush=True)
    rates, memory = (
        {impl: statistics.median(one[key] for one in found) for impl, found in runs.items()}
        for key in ("images_per_second", "peak_memory_mb")
    )
    faster, less = rates["ours"] / rates["textbook"], memory["ours"] / memory["textbook"]
    print(
        json.dumps(
            {"times_images_per_second": round(faster, 2), "times_peak_memory": round(less, 2)}
        )
    )


if __name__ == "__main__":
    main()
