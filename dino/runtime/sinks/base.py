"""The contract of a sink: one place that a run's numbers, pictures and settings go to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Jpeg(NamedTuple):
    """A picture of a run."""

    content: bytes
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a sink is opened with.

    Attributes:
        folder: The run's output folder.
        iteration: Where the run begins (0) or continues. What a sink holds up to it stays, what
            follows is written again.
        also: Second tags in TensorBoard, by tag.
    """

    folder: Path
    iteration: int = 0
    also: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first iteration that the run writes again; a new run writes all."""
        return self.iteration + 1 if self.iteration else 0


class Sink:
    """Where a run's numbers go; by default nowhere. One process of a run has sinks.

    Attributes:
        place: Its name in warnings: a path, or a service.
    """

    place: str

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers of iteration `step` by tag.

        Raises:
            OSError: They cannot be written; they are lost, and the sink can go on.
        """

    def add_images(self, images: Mapping[str, Jpeg], step: int) -> None:
        """Write pictures of iteration `step` by tag.

        Raises:
            OSError: As `add_scalars`.
        """

    def add_settings(self, recipe: str, settings: Mapping[str, Any], step: int) -> None:
        """Write the run's settings, as the text of its recipe and by name.

        Raises:
            OSError: As `add_scalars`.
        """

    def close(self, *, completed: bool) -> None:
        """Write what is left; `completed` says whether the run reached its end."""


def select_new(values: Mapping[str, float], step: int, held: Mapping[str, int]) -> dict[str, float]:
    """Leave out the numbers that a sink holds already; `held` is the last iteration of each tag.

    A run that was killed after a line and before the save repeats it.
    """
    return {tag: value for tag, value in values.items() if step > held.get(tag, -1)}
