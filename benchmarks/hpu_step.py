"""One training step on a Gaudi card (or any device): speed, and what should not happen in the steady state.

    python benchmarks/hpu_step.py [--steps 20] [--phases] [--device hpu --arch vit_small --batch_size_per_device 64 ...]

Takes the flags of main_dino.py, trains on drawn pixels as the trainer does, without waiting for the
device between the steps, and prints one JSON line: images/s, launches and host reads a step,
memory, and, where the device counts them, graph compilations and CPU fallbacks after warm-up.
`--phases` adds milliseconds and launches by phase. `python -m dino.verify` measures the same in
every mode.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from dino.cli.options import parse  # noqa: E402
from dino.cli.session import exit_code, open_session  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402

WARM_UP = 5  # steps; new graphs are due at the first ones only


def main() -> None:
    """Measure."""
    words, steps, phases = sys.argv[1:], 20, "--phases" in sys.argv
    if "--steps" in words:
        place = words.index("--steps")
        steps = int(words[place + 1])
        del words[place : place + 2]
    config = parse(TrainConfig, [word for word in words if word != "--phases"])

    from dino.verify.measure import build_workload, count_step, measure_speed, time_phases

    with open_session(config, precision=config.precision) as run:
        work = build_workload(config, run)
        found = measure_speed(work, warm_up=WARM_UP, steps=steps, say=lambda text: None)
        found |= count_step(work)
        found |= {"ms by phase": time_phases(work)} if phases else {}
        print(json.dumps({"device": run.device.describe(), **found}))


if __name__ == "__main__":
    sys.exit(exit_code(main))
