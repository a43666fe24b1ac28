"""One training step on a Gaudi card (or any device): speed, and what should not happen in the steady state.

    python benchmarks/hpu_step.py [--modes compiled,eager,lazy] [--steps 20] [--phases] [flags of main_dino.py]

Trains on drawn pixels as the trainer does: same seeds and draws, no wait for the device between
steps. Prints one JSON line a mode (each in a process of its own; without `--modes`, one line for
what the flags say): images/s, memory, launches and host reads a step, launches by phase, graphs
that torch.compile captured, waits for the bridge's threads (`pipeline_joins`), and, where the
device counts them, graph compilations and CPU fallbacks after warm-up. `--phases` adds milliseconds
by phase. A launch is an operator that computes, outside of compiled graphs. On the simulated card,
`benchmarks/hpu_launches.py` counts the same from the device's side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from dino.cli.options import parse  # noqa: E402
from dino.cli.session import exit_code, open_session  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402

WARM_UP = 5  # steps; new graphs are due at the first ones only
MODES = {
    "compiled": ["--lazy_mode", "false", "--compile"],
    "eager": ["--lazy_mode", "false"],
    "lazy": ["--lazy_mode", "true"],
}


def main() -> None:
    """Measure here, or each mode in another process."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--modes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--phases", action="store_true")
    words, flags = parser.parse_known_args()
    if words.modes is None:
        measure(parse(TrainConfig, flags), words.steps, words.phases)
        return
    for mode in words.modes.split(","):
        extra = ["--steps", str(words.steps), *["--phases"] * words.phases]
        command = [sys.executable, __file__, *extra, *flags, *MODES[mode]]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(line.splitlines()[-1], flush=True)


def measure(config: TrainConfig, steps: int, phases: bool) -> None:
    """Print one JSON line."""
    from torch._dynamo.utils import counters

    from dino.verify.measure import build_workload, count_step, measure_speed, time_phases

    with open_session(config, precision=config.precision) as run:
        work = build_workload(config, run)
        found = measure_speed(work, warm_up=WARM_UP, steps=steps, say=lambda text: None)
        found |= count_step(work)
        found["graphs captured"] = counters["stats"]["unique_graphs"]
        # In lazy mode, only collectives and new numbers wait.
        waits = run.device.name == "hpu" and run.device.mode != "lazy"
        pinned = found["uploads from pinned memory"] > 0
        found["pipeline_joins"] = waits * (pinned + work.draws.seeds)
        found |= {"ms by phase": time_phases(work)} if phases else {}
        print(json.dumps({"device": run.device.describe(), **found}))


if __name__ == "__main__":
    sys.exit(exit_code(main))
