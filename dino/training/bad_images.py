"""How many unreadable images a run has replaced, over all its processes."""

from __future__ import annotations

import torch

from dino.data.crops import Crops
from dino.runtime.context import Run


class BadImages:
    """Counts replaced images; processes add theirs up from time to time."""

    def __init__(self, run: Run, *, skips: bool) -> None:
        """Begin at 0; without `skips`, a bad image ends the run, and there is none to count."""
        self.run, self.skips = run, skips
        self.total, self.here = 0, 0

    def see(self, batch: Crops) -> None:
        """Count a batch (B, ...) of this process."""
        self.here += int((batch.replaced > 0).sum())

    def add_up(self) -> int:
        """Return the total of all processes; all of them call this."""
        if self.skips:
            here = self.run.device.to_device(torch.tensor([float(self.here)]))
            self.total += int(self.run.processes.all_reduce_sum(here))
            self.here = 0
        return self.total
