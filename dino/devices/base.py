"""What every device offers, and what it runs as a training step."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """A device as a step sees it that runs operator by operator, bound to the step's optimizer.

    Attributes:
        micro_batches: Equal parts that a batch is trained in, with one update.
        reads_freely: Whether the host may look at a value without waiting for it.
        fuses_updates: Whether torch's fused AdamW and its norms of lists run here.
    """

    micro_batches: int
    reads_freely: bool
    fuses_updates: bool

    def split(self, batch: Any, network: nn.Module) -> Iterator[Any]:
        """Yield the micro-batches; until the last one, a data parallel `network` exchanges no gradients."""

    def autocast(self) -> AbstractContextManager[object]:
        """Forward passes inside it run in the chosen number format."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one micro-batch's loss (), divided by the number of micro-batches."""

    def unscale(self) -> Tensor | None:
        """After all backward passes: take the loss scale () out of the gradients and return it; None without one."""

    def update(self, inputs: Any) -> None:
        """Let the optimizer step with `inputs`, and the loss scale follow."""


class TrainProgram(Protocol):
    """What a training step computes."""

    def step(self, engine: Engine, batch: Any, inputs: Any) -> None:
        """Train once.

        Args:
            engine: Splits the batch, runs backward passes and updates.
            batch: A tensor or a named tuple of tensors, on the device.
            inputs: A named tuple of what changes from step to step, on the device.
        """


class Device(abc.ABC):
    """One accelerator (or the CPU) as the rest of the house sees it."""

    name: str
    torch_device: torch.device
    collective_backend: str
    pins_memory: bool | str = (
        False  # whether loaders pin memory; a name where torch must be told for which device
    )
    fuses_updates = False  # whether torch's fused AdamW and its norms of lists run here
    reads_freely = False  # whether the host may look at a value of a step without waiting for it
    reserved_cores = 0  # of the host, that a process of this device keeps busy beside its loaders
    loader_start: str | None = None  # how loader processes start, where torch's default does not do
    parallel_settings: Mapping[str, Any] = {}  # what DistributedDataParallel wants on this device
    clips_by_default = True  # whether gradients are clipped where nothing says so
    refused: Mapping[
        str, str
    ] = {}  # settings of a run that it does not support: what to do instead
    exchanges_gradients = False  # whether its own step averages gradients over processes
    updates_per_step = 1  # updates that one call of a training step makes
    compiles = (
        False  # whether the networks are compiled for training, as asked for or as the device chose
    )
    mode: str | None = (
        None  # the execution mode, where the device has several; a checkpoint keeps it
    )
    caution: str | None = None  # what somebody who trains in this mode should know, in one line

    @abc.abstractmethod
    def describe(self) -> str:
        """One line for the log: chip, mode, number format."""

    @abc.abstractmethod
    def to_device(self, batch: Any) -> Any:
        """Move a tensor or a named tuple of tensors to the device, without waiting where it can."""

    @abc.abstractmethod
    def autocast(self) -> AbstractContextManager[object]:
        """Forward passes inside it run in the chosen number format."""

    def count_micro_batches(self, accumulate_steps: int) -> int:
        """Equal parts of the batch that one call of a training step takes from the loader."""
        return accumulate_steps

    @abc.abstractmethod
    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """Make the step that runs `program` once over `micro_batches` equal parts of a batch."""

    @abc.abstractmethod
    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """Make the fastest callable for inference."""

    @abc.abstractmethod
    def compile_module(self, module: nn.Module) -> nn.Module:
        """Compile a module for training."""

    @abc.abstractmethod
    def synchronize_batch_norm(self, module: nn.Module) -> nn.Module:
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

    def count_cards(self) -> int:
        """How many processes of this host can have a device of this kind each."""
        return 1

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
    """A program bound to an optimizer on a device."""

    @abc.abstractmethod
    def __call__(self, batch: Any, inputs: Any) -> None:
        """Run one step.

        Args:
            batch: In host memory.
            inputs: The program's named tuple of float32 tensors in host memory; a field may be None.
        """

    def read_back(self) -> None:  # noqa: B027 - most steps work on the networks themselves
        """Bring networks and optimizer to where the step is; called before anyone reads them."""

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
