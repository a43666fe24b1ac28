"""Random draws of a step other than its crops.

They are keyed by (seed, iteration, rank, micro-batch), so checkpoints hold no generator state.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dino.data.crops import GLOBAL_VIEWS
from dino.devices.base import Device
from dino.models.depth import draw_depth
from dino.models.multicrop import MultiCrop
from dino.models.probe import SeenRandom
from dino.models.vit import VisionTransformer
from dino.training.config import TrainConfig


class StepDraws:
    """Stochastic depth for our vision transformers, or a seed for networks that draw themselves.

    Stochastic depth is drawn on the host.
    """

    def __init__(
        self, config: TrainConfig, student: MultiCrop, device: Device, rank: int = 0
    ) -> None:
        """Find out what the student needs.

        Args:
            config: The run's settings.
            student: From `build_networks`.
            device: The device that trains.
            rank: Rank of this process.
        """
        self.device, self.seed, self.rank = device, config.run.seed, rank
        self.micro_batches = device.count_micro_batches(config.run.accumulate_steps)
        self.images = config.data.batch_size_per_device
        self.views = GLOBAL_VIEWS + config.crops.local_crops_number
        self.rates = find_rates(student.backbone)
        self.seeds = draws_by_itself(student.backbone, config)

    def begin(self, iteration: int) -> Tensor | None:
        """Return the branch factors, (micro-batches, 2 L, V B) float32 in host memory.

        Returns None without stochastic depth. If the student draws by itself, this reseeds torch's
        generators, which makes some devices wait.
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
    """Return each block's drop probability; () if all are 0 or the backbone draws by itself."""
    rates = tuple(backbone.drop_rates) if isinstance(backbone, VisionTransformer) else ()
    return rates if any(rates) else ()


def draws_by_itself(backbone: nn.Module, config: TrainConfig) -> bool:
    """Whether a training pass uses torch's generators, as dropout does.

    Our vision transformer does not: it receives its factors. Any other network, which may have
    stochastic depth of its own, runs once on the meta device. Its batch norm is in evaluation mode
    because it may communicate with other processes. A network that cannot run there is assumed to
    draw.
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
    return bool(seen.count)
