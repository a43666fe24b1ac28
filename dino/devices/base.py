"""What every device offers, and what a training step must look like to run on any of them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class StepInputs(NamedTuple):
    """What changes from step to step; all () float32 on the device, never Python numbers.

    Attributes:
        learning_rate: Of this iteration, already scaled with the global batch.
        weight_decay: Of this iteration.
        momentum: Of the teacher's moving average.
        temperature: Of the teacher.
        train_last_layer: 0 while the last layer is frozen, else 1.
    """

    learning_rate: Tensor
    weight_decay: Tensor
    momentum: Tensor
    temperature: Tensor
    train_last_layer: Tensor


class TrainProgram(Protocol):
    """One training step in phases; a device runs them in this order, eagerly or compiled as a whole."""

    def augment(self, batch: Any) -> tuple[Tensor, ...]:
        """Make the student's views of one micro-batch, one tensor a resolution, the global ones first."""

    def copy_statistics(self) -> Any:
        """At the beginning: what forward passes move and `after_update` may take back."""

    def forward(self, views: Sequence[Tensor], inputs: StepInputs) -> tuple[Tensor, ...]:
        """Pure: views to () loss first, then whatever the later phases need; all of it can be averaged."""

    def before_update(
        self, outputs: tuple[Tensor, ...], inputs: StepInputs, loss_scale: Tensor | None = None
    ) -> tuple[Any, Any]:
        """After all backwards: clip and decide; gives what the optimiser's step and what `after_update` takes."""

    def after_update(self, update: Any, statistics: Any) -> None:
        """Teacher, centre and meters; `statistics` as copied at the beginning."""

    def hold_gradients(self) -> AbstractContextManager:
        """Within it, backwards add up gradients of this process without exchanging them."""


class Device(abc.ABC):
    """One accelerator (or the CPU) as the rest of the house sees it."""

    name: str
    torch_device: torch.device
    collective_backend: str
    pins_memory = False
    loader_start: str | None = None  # how loader processes start, where torch's default does not do
    parallel_settings: Mapping[str, Any] = {}  # what DistributedDataParallel wants on this device

    @abc.abstractmethod
    def describe(self) -> str:
        """One line for the log: chip, mode, number format."""

    @abc.abstractmethod
    def place(self, batch: Any) -> Any:
        """Move a tensor or a named tuple of tensors to the device, without waiting where it can."""

    @abc.abstractmethod
    def autocast(self) -> AbstractContextManager:
        """Forward passes inside it run in the chosen number format."""

    @abc.abstractmethod
    def compile_train(self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int) -> TrainStep:
        """Make the step that runs `program` once over `micro_batches` equal parts of a batch."""

    @abc.abstractmethod
    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """Make the fastest callable for inference."""

    @abc.abstractmethod
    def compile_module(self, module: nn.Module) -> nn.Module:
        """Compile a module for training."""

    @abc.abstractmethod
    def synchronise_batch_norm(self, module: nn.Module) -> nn.Module:
        """Replace batch norm by one whose statistics span all processes."""

    def explain(self, error: RuntimeError) -> str | None:
        """One line of cause and remedy for an error of the device itself (its memory, its driver), or None."""
        return None

    def read_counters(self) -> dict[str, float]:
        """Running counts by TensorBoard tag of what should not happen in the steady state; read on log lines."""
        return {}

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Wait until everything queued has run."""

    def memory_peak(self) -> int | None:
        """Largest memory use so far in bytes, or None where the device does not tell."""
        return None

    def memory_total(self) -> int | None:
        """All memory that there is in bytes, or None where the device does not tell."""
        return None

    def seed(self, value: int) -> None:
        """Restart the random numbers of the device and of the host's torch."""
        torch.manual_seed(value)

    def to_host(self, state: Any) -> Any:
        """Copy every tensor in nested dicts and lists to host memory, detached."""
        if isinstance(state, Tensor):
            return state.detach().to("cpu", copy=True)
        if isinstance(state, dict):
            return {key: self.to_host(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return [self.to_host(value) for value in state]
        return state


class TrainStep(abc.ABC):
    """A program bound to an optimiser on a device."""

    @abc.abstractmethod
    def __call__(self, batch: Any, inputs: Sequence[float]) -> None:
        """Run one step; `inputs` are the numbers of `StepInputs`, in its order."""

    def state_dict(self) -> dict[str, Any]:
        """What the step itself remembers between calls (a loss scale)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most steps remember nothing
        """Continue from `state_dict`."""


def split_batch(batch: Any, parts: int) -> Iterator[Any]:
    """Cut every tensor of a named tuple into equal parts along its first dimension."""
    if parts == 1:
        yield batch
        return
    pieces = [field.chunk(parts) for field in batch]
    for piece in zip(*pieces, strict=True):
        yield type(batch)(*piece)
