"""How far runs on the CPU part that differ in everything random: the tolerance of verify's short training.

    python benchmarks/verify_seeds.py [--size quick] [--seeds 8]

Prints one JSON line a seed, and last the standard deviations over seeds as `dino/verify/steps/training.py` holds them:
of the loss, at the point of the curve where it is largest, and of the k-NN accuracy at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from dino.verify.base import Setting, Variant  # noqa: E402
from dino.verify.child import open_bench  # noqa: E402
from dino.verify.steps.training import SIZES, train  # noqa: E402


def main() -> None:
    """Run the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--seeds", type=int, default=8)
    arguments = parser.parse_args()
    losses, scores = [], []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device="cpu", size=arguments.size, modes=(), folder=Path(folder))
        variant = Variant(label="CPU", device="cpu")
        for seed in range(arguments.seeds):
            with open_bench(variant, setting, lambda text, **_: None) as bench:
                words = [*variant.words(), "--seed", str(seed), "--output_dir", f"{folder}/{seed}"]
                found = train(SIZES[arguments.size], bench, words)
            print(json.dumps({"seed": seed, **found}), flush=True)
            losses.append(found["losses"])
            scores.append(found["knn"])
    by_point = np.std(losses, axis=0, ddof=1)
    print(
        json.dumps({"loss": float(by_point.max()), "knn": float(np.std(scores, ddof=1)), "points": by_point.tolist()})
    )


if __name__ == "__main__":
    main()
