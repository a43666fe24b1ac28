"""How far runs of verify's short training part: by rounding alone, and by everything random.

    python benchmarks/verify_seeds.py [--size quick] [--precision bf16] [--changes 3] [--seeds 8]

All on the CPU. First the run that verify takes as its reference; then `--changes` runs of its seed
in `--precision`, whose learning rate is larger by 1, 10, 100 ... parts in a million, which is what
another order of summation does; then `--seeds` runs of other seeds. Prints one JSON line a run, and
last the largest distance of each kind from the reference, of a point of the loss curve and of the
k-NN accuracy, as `dino/verify/steps/training.py` holds them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from dino.verify.base import FORMATS, Setting, Variant  # noqa: E402
from dino.verify.child import open_bench  # noqa: E402
from dino.verify.steps.training import RATE, SIZES, find_gap, train  # noqa: E402


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--precision", choices=FORMATS, default="fp32")
    parser.add_argument("--changes", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=0)
    arguments = parser.parse_args()
    rates = [RATE * (1 + 1e-6 * 10**place) for place in range(arguments.changes)]
    runs = [
        ("reference", FORMATS[0], RATE, 0),
        *(("rounding", arguments.precision, rate, 0) for rate in rates),
    ]
    runs += [("seed", FORMATS[0], RATE, 1 + seed) for seed in range(arguments.seeds)]
    reference: dict = {}
    gaps: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for kind, precision, rate, seed in runs:
        found = run(arguments.size, precision, rate, seed)
        print(json.dumps({"kind": kind, "rate": rate, "seed": seed, **found}), flush=True)
        reference = reference or found
        gap = find_gap(found["losses"], reference["losses"]), abs(found["knn"] - reference["knn"])
        gaps[kind] = [max(pair) for pair in zip(gaps[kind], gap, strict=True)]
    print(json.dumps({kind: {"loss": loss, "knn": knn} for kind, (loss, knn) in gaps.items()}))


def run(size: str, precision: str, rate: float, seed: int) -> dict:
    """One training."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device="cpu", size=size, modes=(), folder=Path(folder))
        variant = Variant(label="CPU", device="cpu", precision=precision)
        with open_bench(variant, setting, lambda text, **_: None) as bench:
            more = {"seed": seed, "lr": rate, "output_dir": f"{folder}/run"}
            return train(SIZES[size], bench, variant.settings() | more)


if __name__ == "__main__":
    main()
