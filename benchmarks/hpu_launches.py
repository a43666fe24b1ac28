"""What one training step gives a Gaudi card to do, phase by phase, counted on the simulated card.

    python benchmarks/hpu_launches.py [--precision bf16 --lazy_mode false|true | --compile] [--arch vit_small ...]

Takes the flags of main_dino.py; ViT-S/16 unless they say otherwise. Two images are enough, since a
batch's size changes only how often the loss is cut: it is cut as at 64 images.
HPU_SIMULATOR_RELEASE says which release, 1.19 or 1.24. Prints a table of the fifth step (operators
outside compiled graphs, and compiled graphs) and one JSON line.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dino.cli.options import parse  # noqa: E402
from dino.cli.session import exit_code, open_session  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402
from tests import hpu_simulator  # noqa: E402

BATCH = 2  # images
SHOWN_BATCH = 64  # images whose chunks of the loss are counted
STEPS = 4  # before the one that counts


def main() -> None:
    """Count."""
    words = [
        "--device",
        "hpu",
        "--arch",
        "vit_small",
        "--batch_size_per_device",
        str(BATCH),
        *sys.argv[1:],
    ]
    hpu_simulator.load_extension()
    sys.path.insert(0, str(hpu_simulator.PACKAGE))
    config = parse(TrainConfig, words)

    from dino.verify.measure import build_workload

    hpu_simulator.mark_phases()
    with open_session(config, precision=config.precision) as run:
        step = build_workload(config, run)
        for _ in range(STEPS):
            step()
        with hpu_simulator.watch() as seen:
            step()
        show(run.device.describe(), seen)


def show(device: str, seen: hpu_simulator.Seen) -> None:
    """Print what was seen."""
    operators, graphs = seen.launches.operators, seen.launches.graphs
    for phase in {**operators, **graphs}:
        most = Counter(
            {name: count for name, count in seen.launches.within(phase).items() if name != "graph"}
        )
        names = ", ".join(
            f"{count} {name.removeprefix('aten::')}" for name, count in most.most_common(4)
        )
        print(f"{phase:10} {operators[phase]:6} operators {graphs[phase]:3} graphs   {names}")
    print(f"{'all':10} {operators.total():6} operators {graphs.total():3} graphs")
    figures = {
        "launches": operators,
        "compiled": graphs,
        "lazy graphs": len(seen.graphs),
        "views": seen.views,
    }
    more = {
        "allocations": seen.allocations,
        "uploads": seen.uploads.count,
        "pipeline_joins": len(seen.joins),
    }
    print(json.dumps({"device": device, **figures, **more, "new graphs": len(seen.new_graphs)}))


if __name__ == "__main__":
    sys.exit(exit_code(main))
