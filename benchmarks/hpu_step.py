"""One training step on a Gaudi card (or any device): speed, and what should not happen in the steady state.

    python benchmarks/hpu_step.py [--steps 20] [--device hpu --arch vit_small --batch_size_per_device 64 --hmp ...]

Takes the flags of main_dino.py, trains on synthetic images, and prints one JSON line: images/s (median and spread over
the steps), host reads a step, and, where the device counts them, graph compilations and CPU fallbacks after warm-up.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np  # noqa: E402

from dino.errors import exit_code  # noqa: E402
from dino.flags import TrainOptions  # noqa: E402
from dino.options import parse  # noqa: E402

WARM_UP = 5  # steps; new graphs are due at the first ones only


def main() -> None:
    """Measure."""
    words, steps = sys.argv[1:], 20
    if "--steps" in words:
        place = words.index("--steps")
        steps = int(words[place + 1])
        del words[place : place + 2]
    options = parse(TrainOptions, words)

    from dino.runtime.context import open_run

    with open_run(options.device, options.launch, precision=options.precision, explicit=options.explicit) as run:
        print(json.dumps({"device": run.device.describe(), "steps": steps, **measure(options, run, steps)}))


def measure(options: TrainOptions, run: Any, steps: int) -> dict[str, Any]:
    """Run the warm-up and then `steps` steps; gives the figures."""
    step = build_step(options, run)
    for _ in range(WARM_UP):
        step()
    run.device.synchronize()
    before, seconds = run.device.read_counters(), []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        run.device.synchronize()
        seconds.append(time.perf_counter() - began)
    after = run.device.read_counters()
    with HostReads() as reads:
        step()
    images = options.data.batch_size_per_device * options.run.accumulate_steps
    low, middle, high = (images / part for part in np.quantile(seconds, [0.9, 0.5, 0.1]).tolist())
    grown = {name.removeprefix("hpu/"): after[name] - before[name] for name in after}
    return {
        "images/s": round(middle, 2),
        "images/s 10-90 %": [round(low, 2), round(high, 2)],
        "step ms": round(1e3 * statistics.median(seconds), 2),
        "host reads a step": reads.count,
        **grown,
        "memory peak": run.device.memory_peak(),
    }


def build_step(options: TrainOptions, run: Any) -> Callable[[], None]:
    """The product's step, bound to one synthetic batch."""
    import torch

    from dino.data.crops import CropRecipe, build_rng, cut_crops
    from dino.data.loaders import default_collate
    from dino.training.build import build_networks, build_program
    from dino.training.optim import build_optimizer

    crops = options.crops
    recipe = CropRecipe(
        global_size=crops.global_crops_size,
        local_size=crops.local_crops_size,
        local_views=crops.local_crops_number,
        channels=options.student.in_chans,
    )
    image = torch.randint(0, 256, (options.student.in_chans, 256, 256), dtype=torch.uint8)
    count = options.data.batch_size_per_device * options.run.accumulate_steps
    batch = default_collate([cut_crops(image, recipe, build_rng(0, 0, index)) for index in range(count)])
    student, teacher = build_networks(options, run)
    optimizer = build_optimizer(options.optim.optimizer, student)
    program = build_program(options, student, teacher, run)
    step = run.device.compile_train(program, optimizer, options.run.accumulate_steps)
    inputs = iter([(1e-4 * (1 + index % 7), 0.04, 0.996, 0.04, 1.0) for index in range(10_000)])
    return lambda: step(batch, next(inputs))


class HostReads:
    """Counts reads of device values by the host, by the operators that do it."""

    def __enter__(self) -> HostReads:
        """Start counting."""
        from torch.utils._python_dispatch import TorchDispatchMode

        outer, self.count = self, 0

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                outer.count += op.overloadpacket.__name__ in {"_local_scalar_dense", "nonzero", "_unique2"}
                result = op(*args, **(kwargs or {}))
                if op.overloadpacket.__name__ == "_to_copy":
                    outer.count += args[0].device.type != "cpu" and result.device.type == "cpu"
                return result

        self.mode = Mode()
        self.mode.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        self.mode.__exit__(None, None, None)


if __name__ == "__main__":
    sys.exit(exit_code(main))
