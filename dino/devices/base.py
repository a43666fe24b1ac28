"""The interface of a device, and of the training step that it runs."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dino.devices.attention import Attend

TEMPORARY_PART = 64  # of the memory; about four temporary tensors exist at a time


class Engine(Protocol):
    """The view of a device that a step has if it runs operator by operator.

    An engine is bound to the step's optimizer.

    Attributes:
        micro_batches: Number of equal parts of a batch; all of them make one update.
        reads_freely: Whether the host can read a value without waiting for it.
        fuses_updates: Whether torch's fused AdamW and its norms of tensor lists run here.
        fuses_lists: Whether products of a list of tensors and a () tensor are one kernel.
    """

    micro_batches: int
    reads_freely: bool
    fuses_updates: bool
    fuses_lists: bool

    def split(self, batch: Any) -> Iterator[Any]:
        """Yield the micro-batches."""

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which forward passes run in the chosen number format."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's loss (), divided by the number of micro-batches."""

    def unscale(self) -> Tensor | None:
        """Remove the loss scale () from the gradients and return it, or None without a scale.

        Called after all backward passes.
        """

    def update(self, inputs: Any) -> None:
        """Step the optimizer with `inputs`, then update the loss scale."""


class TrainProgram(Protocol):
    """The computation of a training step."""

    def step(self, engine: Engine, batch: Any, inputs: Any) -> None:
        """Train once.

        Args:
            engine: Splits the batch, runs backward passes and updates.
            batch: A tensor or a named tuple of tensors, on the device.
            inputs: A named tuple of the inputs that change from step to step, on the device.
        """


class Device(abc.ABC):
    """One accelerator (or the CPU), as the rest of the package uses it.

    Attributes:
        name: cpu, cuda, hpu or ipu.
        torch_device: Where tensors are.
        collective_backend: gloo, nccl or hccl.
        pins_memory: Whether loaders pin memory; a device name if torch needs one.
        fuses_updates: Whether torch's fused AdamW and its norms of tensor lists run here.
        fuses_lists: Whether products of a list of tensors and a () tensor are one kernel.
        reads_freely: Whether the host can read a value of a step without waiting for it.
        reserved_cores: Host cores that a process keeps busy in addition to its loaders.
        loader_start: Start method of loader processes; None for torch's default.
        bucket_bytes: Gradients that processes exchange in one collective.
        clips_by_default: Whether gradients are clipped if `clip_grad` is not set.
        scores_in_training: Whether a backbone can be scored between two steps of a run.
        refused: Unsupported settings of a run -> what to do instead.
        exchanges_gradients: Whether the device's step averages gradients over processes itself.
        updates_per_step: Updates in one call of a training step.
        compiles: Whether networks are compiled for training.
        replays: Whether a step is recorded once and replayed; then there is one process, and
            networks draw nothing on the device.
        recompute: What the backward pass of a vision transformer recomputes unless chosen.
        attention: What vision transformers attend by in training; None for torch's own.
        mode: The execution mode, if the device has several; a checkpoint keeps it.
        caution: One line of advice for training in this mode, or None.
    """

    name: str
    torch_device: torch.device
    collective_backend: str
    pins_memory: bool | str = False
    fuses_updates = False
    fuses_lists = False
    reads_freely = False
    reserved_cores = 0
    loader_start: str | None = None
    bucket_bytes = 25 * 2**20
    clips_by_default = True
    scores_in_training = True
    refused: Mapping[str, str] = {}
    exchanges_gradients = False
    updates_per_step = 1
    compiles = False
    replays = False
    recompute = "nothing"
    attention: Attend | None = None
    mode: str | None = None
    caution: str | None = None

    @abc.abstractmethod
    def describe(self) -> str:
        """Return one line for the log: chip, mode, number format."""

    @abc.abstractmethod
    def to_device(self, batch: Any) -> Any:
        """Move a tensor or a named tuple of tensors to the device, without waiting if possible."""

    @abc.abstractmethod
    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which forward passes run in the chosen number format."""

    def count_micro_batches(self, accumulate_steps: int) -> int:
        """Return the number of micro-batches in a batch that one call of a training step takes."""
        return accumulate_steps

    @abc.abstractmethod
    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """Build the step that runs `program` once over `micro_batches` equal parts of a batch."""

    @abc.abstractmethod
    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """Build the fastest callable for inference."""

    @abc.abstractmethod
    def compile_module(self, module: nn.Module, *, in_parts: bool = False) -> nn.Module:
        """Compile a module for training.

        Args:
            module: The module.
            in_parts: Whether its gradients must become available part by part, a bucket at a time.
        """

    def compile_phase(self, phase: Callable[..., Any], *, whole: bool = True) -> Callable[..., Any]:
        """Compile a function of tensors if the device compiles, else return it.

        Args:
            phase: The function.
            whole: Whether anything but one graph is an error.
        """
        return phase

    def find_fused_attention(self) -> Attend | None:
        """Return the device's fused attention if it is not the default and this software has it."""
        return None

    def temporary_bytes(self) -> int:
        """Return the size that one temporary tensor of a step should have at most."""
        return (self.memory_total() or 0) // TEMPORARY_PART

    def prepare_network(self, stages: Iterable[nn.Module]) -> None:  # noqa: B027 - most need none
        """Change how a network computes in training, not what.

        Args:
            stages: Modules that run by their `forward`, one after the other, once in a pass.
        """

    @abc.abstractmethod
    def synchronize_batch_norm(self, module: nn.Module) -> nn.Module:
        """Replace batch norm with one that has statistics over all processes."""

    def explain(self, error: RuntimeError) -> str | None:
        """Return one line of cause and remedy for a device error (memory, driver), or None."""
        return None

    def read_counters(self) -> dict[str, float]:
        """Return counts, by TensorBoard tag, of events that should not occur in the steady state.

        They are read at log lines.
        """
        return {}

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Wait until all queued work has run."""

    def count_cards(self) -> int:
        """Return how many processes on this host can each have a device of this type."""
        return 1

    def memory_peak(self) -> int | None:
        """Return the peak memory use in bytes, or None if the device does not report it."""
        return None

    def memory_total(self) -> int | None:
        """Return the total memory in bytes, or None if the device does not report it."""
        return None

    def seed(self, value: int) -> None:
        """Seed the random generators of the device and of the host's torch."""
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
            inputs: The program's named tuple of float32 tensors in host memory; fields may be None.
        """

    def read_back(self) -> None:  # noqa: B027 - most steps work on the networks themselves
        """Bring networks and optimizer up to date; called before they are read."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the step itself (a loss scale)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most have no state
        """Load `state_dict`."""


def split_batch(batch: Any, parts: int) -> Iterator[Any]:
    """Split every tensor of a named tuple into equal parts along its first dimension."""
    if parts == 1:
        yield batch
        return
    chunks = [field.chunk(parts) for field in batch]
    for fields in zip(*chunks, strict=True):
        yield type(batch)(*fields)
