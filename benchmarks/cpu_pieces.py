"""What torch.compile makes of each piece of a step on the CPU, and what Python costs a small network.

    python benchmarks/cpu_pieces.py pieces [--precision bf16] [--rounds 5]
    python benchmarks/cpu_pieces.py casts
    python benchmarks/cpu_pieces.py overhead

`pieces`: forward and backward pass of each piece of ViT-S/16 (8 images, 2 x 224 and 8 x 96 crops,
65,536 prototypes), eager and compiled by inductor in turn: medians in milliseconds, and the seconds
that compiling took. `casts`: shares of a bf16 step that casts of weights and of activations take.
`overhead`: microseconds of a step of the demo's recipe, and of it outside of torch's operators, which
is Python (with a profiler, whose own time is part of it).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from dino.cli.options import parse  # noqa: E402
from dino.cli.session import open_session  # noqa: E402
from dino.devices.cpu import keep_freed_memory  # noqa: E402
from dino.models.block import Block  # noqa: E402
from dino.runtime.context import Run  # noqa: E402
from dino.training.chunks import Chunks  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402
from dino.training.loss import differentiate  # noqa: E402
from dino.verify.measure import build_workload, measure_speed  # noqa: E402

WORDS = "--data_path demo --device cpu --arch vit_small --out_dim 65536 --drop_path_rate 0"
GROUPS = ((2 * 8, 197), (8 * 8, 37))  # crops of 8 images, tokens of each
TOKENS, WIDTH = sum(images * length for images, length in GROUPS), 384


def list_pieces() -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """Name, function and inputs of each piece; the result's sum is differentiated."""
    tokens = torch.randn(TOKENS, WIDTH)
    norm, act = nn.LayerNorm(WIDTH), nn.GELU()
    wide, narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
    yield "layer norm", norm, [tokens]
    yield "GELU", act, [torch.randn(TOKENS, 4 * WIDTH)]
    yield "linear layer", wide, [tokens]
    yield "residual sum", lambda left, right: left + right, [tokens, torch.randn_like(tokens)]
    yield "norm and perceptron", lambda x: x + narrow(act(wide(norm(x)))), [tokens]
    block = Block(dim=WIDTH, heads=6, mlp_ratio=4.0, drop_path=0.0)
    yield "block", lambda x: block(x, groups=GROUPS), [tokens]


def time_piece(piece: Callable[..., Tensor], inputs: list[Tensor], precision: torch.dtype) -> float:
    """Milliseconds of a forward and a backward pass."""
    inputs = [part.detach().requires_grad_() for part in inputs]
    began = time.perf_counter()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        result = piece(*inputs)
    result.backward(torch.ones_like(result))
    return 1e3 * (time.perf_counter() - began)


def compare_pieces(rounds: int, precision: torch.dtype) -> None:
    """Print a line for each piece."""
    for name, piece, inputs in list_pieces():
        compiled = torch.compile(piece, fullgraph=True, dynamic=False)
        began = time.perf_counter()
        time_piece(compiled, inputs, precision)
        seconds = time.perf_counter() - began
        ways = [functools.partial(time_piece, way, inputs, precision) for way in (piece, compiled)]
        report(name, rounds, seconds, *ways)


def compare_loss(rounds: int, precision: torch.dtype) -> None:
    """Print a line for the loss with its gradients."""
    vectors = nn.functional.normalize(torch.randn(80, 256))
    rest = torch.randn(65536, 256), torch.ones(65536, 1), torch.randn(2, 8, 65536).softmax(-1)
    compiled = torch.compile(differentiate, fullgraph=True, dynamic=False)

    def run(function: Callable[..., object], chunks: Chunks) -> float:
        began = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            function(vectors, *rest, chunks)
        return 1e3 * (time.perf_counter() - began)

    parts = Chunks(128, 4096)  # as a run has them
    for name, chunks in (("in parts", parts), ("prototypes at once", Chunks(128, 65536))):
        seconds = run(compiled, chunks) / 1e3
        ways = (
            functools.partial(run, differentiate, parts),
            functools.partial(run, compiled, chunks),
        )
        report(f"loss and last layer, with gradients, {name}", rounds, seconds, *ways)


def report(
    name: str,
    rounds: int,
    seconds: float,
    eager: Callable[[], float],
    compiled: Callable[[], float],
) -> None:
    """Time both in turn and print one JSON line."""
    found = [(eager(), compiled()) for _ in range(rounds + 1)][1:]
    one, two = (statistics.median(part) for part in zip(*found, strict=True))
    line = {"piece": name, "eager_ms": round(one, 2), "compiled_ms": round(two, 2)}
    print(
        json.dumps({**line, "times": round(one / two, 2), "compile_s": round(seconds, 1)}),
        flush=True,
    )


def tell_casts(run: Run, config: TrainConfig) -> None:
    """Print the shares of casts of weights and of other tensors."""
    work = build_workload(config, run)
    measure_speed(work, warm_up=2, steps=1, say=lambda text: None)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as events:
        work()
    rows = events.key_averages(group_by_input_shape=True)
    whole = sum(row.self_cpu_time_total for row in rows)
    shapes = {tuple(part.shape) for part in work.program.student.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    shares = {"weights and their gradients": 0.0, "activations": 0.0}
    for row in rows:
        if row.key == "aten::copy_" and row.input_shapes:
            of_weight = tuple(row.input_shapes[0]) in shapes
            shares["weights and their gradients" if of_weight else "activations"] += (
                row.self_cpu_time_total / whole
            )
    print(json.dumps({name: round(share, 3) for name, share in shares.items()}))


def tell_overhead(run: Run, config: TrainConfig) -> None:
    """Print the microseconds of a step, and those outside of torch's operators."""
    work = build_workload(config, run)
    found = measure_speed(work, warm_up=5, steps=20, say=lambda text: None)
    outside = []
    for _ in range(9):
        with profile(activities=[ProfilerActivity.CPU]) as events:
            began = time.perf_counter()
            work()
            whole = 1e6 * (time.perf_counter() - began)
        rows = events.key_averages()
        outside.append(whole - sum(row.self_cpu_time_total for row in rows))
    calls = sum(row.count for row in rows if row.key.startswith("aten::"))
    line = {"microseconds a step": round(1e3 * found["ms a step"]), "operators": calls}
    spread = [round(part) for part in (min(outside), statistics.median(outside), max(outside))]
    print(json.dumps({**line, "outside of operators: least, median, most": spread}))


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["pieces", "casts", "overhead"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    precision = torch.bfloat16 if words.precision == "bf16" else torch.float32
    if words.what == "pieces":
        keep_freed_memory()
        compare_pieces(words.rounds, precision)
        compare_loss(words.rounds, precision)
        return
    line, tell = LINES[words.what]
    config = parse(TrainConfig, line.split())
    with open_session(config, precision=config.precision) as run:
        tell(run, config)


LINES = {
    "casts": (f"{WORDS} --precision bf16 --batch_size_per_device 8", tell_casts),
    "overhead": (
        "--data_path demo --config configs/demo.yaml --device cpu",
        tell_overhead,
    ),
}

if __name__ == "__main__":
    main()
