"""What a step draws besides its crops: by (seed, iteration, rank, micro-batch), so that nothing random is saved."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from dino.data.crops import GLOBAL_VIEWS
from dino.devices.base import Device
from dino.models.depth import draw_depth
from dino.models.multicrop import MultiCrop
from dino.models.vit import VisionTransformer
from dino.training.config import TrainConfig


class StepDraws:
    """Stochastic depth of our vision transformers, drawn on the host; a seed for networks that draw by themselves."""

    def __init__(
        self, config: TrainConfig, student: MultiCrop, device: Device, rank: int = 0
    ) -> None:
        """Look at the student.

        Args:
            config: Of the run.
            student: As `build_networks` gives it.
            device: The one that trains.
            rank: Of this process.
        """
        self.device, self.seed, self.rank = device, config.run.seed, rank
        self.micro_batches = device.count_micro_batches(config.run.accumulate_steps)
        self.images = config.data.batch_size_per_device
        self.views = GLOBAL_VIEWS + config.crops.local_crops_number
        self.rates = find_rates(student.backbone)
        self.seeds = draws_by_itself(student.backbone, config)

    def begin(self, iteration: int) -> Tensor | None:
        """Factors of all branches, (micro-batches, 2 L, V B) float32 in host memory; None without stochastic depth.

        Where the student draws by itself, torch's generators start anew. That makes some devices wait.
        """
        key = (self.seed, iteration, self.rank)
        if self.seeds:
            self.device.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        if not self.rates:
            return None
        count = self.images * self.views
        drawn = [
            draw_depth(self.rates, count, (*key, index)) for index in range(self.micro_batches)
        ]
        return torch.from_numpy(np.stack(drawn))


def find_rates(backbone: nn.Module) -> tuple[float, ...]:
    """Drop probability of each block, or nothing where none is above 0 or the backbone draws by itself."""
    rates = tuple(backbone.drop_rates) if isinstance(backbone, VisionTransformer) else ()
    return rates if any(rates) else ()


def draws_by_itself(backbone: nn.Module, config: TrainConfig) -> bool:
    """Whether a training pass takes from torch's generators: dropout, or the stochastic depth of other projects.

    Ours does not once it is given its factors. Any other network runs once on tensors without content (its batch norm
    as in evaluation, since its own may talk to other processes); one that cannot may draw.
    """
    if isinstance(backbone, VisionTransformer):
        return False
    size, was_training = config.crops.global_crops_size, backbone.training
    named = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in named.items()}
    images = torch.empty(1, config.student.chosen_in_chans, size, size, device="meta")
    try:
        for part in backbone.train().modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        seen = SeenRandom()
        with seen:
            functional_call(backbone, empty, (images,))
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError):
        return True
    finally:
        backbone.train(was_training)
    return seen.random


class SeenRandom(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves what it calls for subclasses untyped
    """Remembers whether any operator inside took from a generator."""

    random = False

    def __init__(self) -> None:
        """None has yet."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves its dispatch modes untyped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, and run it."""
        self.random |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
