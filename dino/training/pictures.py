"""When the pictures of a run are drawn: its crops at the start, its backbone after each epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dino.data.crops import Crops
from dino.models.multicrop import MultiCrop
from dino.runtime.sinks.base import Jpeg
from dino.training.ema import set_modes
from dino.training.step import DinoProgram

logger = logging.getLogger(__name__)

CROPPED = 8  # images whose crops are drawn


class Pictures(Protocol):
    """What draws: writes files, and returns them as JPEGs by name."""

    def draw_crops(self, views: Sequence[Tensor], images: int) -> Mapping[str, Jpeg]:
        """Draw views of B images, per resolution (V B, C, S, S) as the network gets them."""

    def draw_backbone(self, backbone: nn.Module) -> Mapping[str, Jpeg]:
        """Draw what a backbone sees in some images; leaves it in eval mode."""


class Album:
    """The pictures of one run; a failure costs a warning, never the run."""

    def __init__(
        self,
        pictures: Pictures | None,
        program: DinoProgram,
        write: Callable[[Mapping[str, Jpeg], int], None],
    ) -> None:
        """Begin.

        Args:
            pictures: What draws; None to draw nothing.
            program: The run's augmentation.
            write: Records pictures of an iteration.
        """
        self.pictures, self.program, self.write = pictures, program, write
        self.crops: list[Crops] | None = None if pictures is None else []
        self.warned = False

    def see(self, batch: Crops, iteration: int) -> None:
        """Draw the crops once, from the first batches (B, ...) that hold enough images."""
        if self.crops is None:
            return
        self.crops.append(batch)
        if sum(len(part.replaced) for part in self.crops) >= CROPPED:
            self._draw_crops(iteration)

    def end_epoch(self, teacher: MultiCrop, iteration: int) -> None:
        """Draw the teacher's backbone."""
        if self.pictures is None:
            return
        if self.crops:  # an epoch of few images
            self._draw_crops(iteration)
        self._draw(lambda pictures: pictures.draw_backbone(teacher.backbone), iteration)
        set_modes(teacher)

    def _draw_crops(self, iteration: int) -> None:
        fields = zip(*(self.crops or ()), strict=True)
        crops, self.crops = Crops(*(torch.cat(parts)[:CROPPED] for parts in fields)), None
        views = self.program.augment(crops, eager=True)
        self._draw(lambda pictures: pictures.draw_crops(views, len(crops.replaced)), iteration)

    def _draw(self, draw: Callable[[Pictures], Mapping[str, Jpeg]], iteration: int) -> None:
        assert self.pictures is not None
        try:
            self.write(draw(self.pictures), iteration)
        except Exception as error:  # noqa: BLE001 - no picture is worth a run
            if not self.warned:
                logger.warning("pictures of the run cannot be drawn: %s", error)
            self.warned = True
