"""Layout of a network over several chips as a pipeline, and the micro-batches that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from dino.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The chip of each part, the same for student and teacher.

    Attributes:
        chips: Number of chips.
        blocks: Chip of each block, in order; empty if everything is on one chip.
        hidden: Chip of the head's hidden layers.
        prototypes: Chip of the last layer and of the loss.
    """

    chips: int
    blocks: tuple[int, ...]
    hidden: int
    prototypes: int

    def chip_of(self, name: str) -> int:
        """Return the chip of a parameter by its name, such as `backbone.blocks.3.norm1.weight`."""
        if name.startswith("head."):
            return self.prototypes if "last_layer" in name else self.hidden
        block = re.match(r"backbone\.blocks\.(\d+)\.", name)
        if block:
            return self.blocks[int(block[1])] if self.blocks else 0
        return self.blocks[-1] if self.blocks and name.startswith("backbone.norm.") else 0

    def stages(self, names: Iterable[str]) -> int:
        """Return the stages of one training step, forward and backward.

        It is also the least number of accumulated micro-batches. A new stage begins when the next
        op is on another chip. The teacher's update, its forward pass and the student's visit all
        chips.

        Args:
            names: Names of the parameters.
        """
        backbone = [0, *self.blocks]
        head = [self.hidden, self.prototypes]
        moved = sorted({self.chip_of(name) for name in names})
        visits = [*moved, 0, *backbone, *head, *backbone, *head]
        switches = sum(chip != before for chip, before in zip(visits, [0, *visits], strict=False))
        return 2 * (switches + 1) - 1

    def annotations(self, network: nn.Module) -> list[tuple[nn.Module, int]]:
        """Return the modules of a network at which the chip changes, with their chips."""
        blocks = network.get_submodule("backbone.blocks").children()
        begins = [
            (block, chip)
            for block, chip, before in zip(blocks, self.blocks, (0, *self.blocks), strict=False)
            if chip != before
        ]
        head = [("head.mlp", self.hidden), ("head.last_layer", self.prototypes)]
        ends = [(network.get_submodule(name), chip) for name, chip in head]
        return [(network.get_submodule("backbone.patch_embed"), 0), *begins, *ends]


def place_blocks(pipeline: Sequence[int] | None, depth: int | None) -> Placement:
    """Place a vision transformer on chips.

    Patches go on the first chip, the last layer on the last, and the head on the one before that.

    Args:
        pipeline: Blocks of each chip, or None for one chip.
        depth: Number of blocks of the backbone, or None if it has none.

    Raises:
        OptionError: The numbers do not fit the backbone.
    """
    if pipeline is None:
        return Placement(chips=1, blocks=(), hidden=0, prototypes=0)
    written = " ".join(map(str, pipeline))
    if depth is None:
        raise OptionError(
            f"`pipeline` {written} places the blocks of a vision transformer",
            value=written,
            remedy="leave it out",
        )
    if sum(pipeline) != depth:
        raise OptionError(
            f"`pipeline` {written} places {sum(pipeline)} blocks, the backbone has {depth}",
            value=written,
        )
    chips = len(pipeline)
    blocks = tuple(chip for chip, count in enumerate(pipeline) for _ in range(count))
    return Placement(chips=chips, blocks=blocks, hidden=max(0, chips - 2), prototypes=chips - 1)
