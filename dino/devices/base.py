"""What every device offers, and what a training step must look like to run on any of them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class StepInputs(NamedTuple):
    """What changes from step to step; float32 on the device, never Python numbers, and () but for the last.

    Attributes:
        learning_rate: Of this iteration, already scaled with the global batch.
        weight_decay: Of this iteration.
        momentum: Of the teacher's moving average.
        temperature: Of the teacher.
        train_last_layer: 0 while the last layer is frozen, else 1.
        depth: Stochastic depth of one micro-batch, (2 L, V B), or None where the student has none (`training/draws`).
    """

    learning_rate: Tensor
    weight_decay: Tensor
    momentum: Tensor
    temperature: Tensor
    train_last_layer: Tensor
    depth: Tensor | None = None


class TrainProgram(Protocol):
    """One training step in phases; a device runs them in this order, eagerly or compiled as a whole."""

    def augment(self, batch: Any) -> tuple[Tensor, ...]:
        """Make the student's views of one micro-batch, one tensor a resolution, the global ones first."""

    def copy_statistics(self) -> Any:
        """At the beginning: what forward passes move and `after_update` may take back."""

    def forward(self, views: Sequence[Tensor], inputs: StepInputs) -> tuple[Tensor, ...]:
        """Pure: views to () loss first, then whatever the later phases need; all of it can be averaged."""

    def exchange(self, outputs: tuple[Tensor, ...]) -> Any:
        """Before the last backward: begin to average over processes what `forward` gave, averaged over micro-batches.

        Gives what `before_update` takes; in between, the processes' exchange runs beside the backward pass.
        """

    def before_update(self, exchanged: Any, inputs: StepInputs, loss_scale: Tensor | None = None) -> tuple[Any, Any]:
        """After all backwards: clip and decide; gives what the optimiser's step and what `after_update` takes."""

    def after_update(self, update: Any, statistics: Any) -> None:
        """Teacher, center and meters; `statistics` as copied at the beginning."""

    def no_sync(self) -> AbstractContextManager[object]:
        """Within it, backwards add up gradients of this process without exchanging them."""


class WholeProgram(TrainProgram, Protocol):
    """A step for devices that compile all of it, update included; the host sees what comes out.

    Attributes:
        student: Network with the parts `backbone` and `head`.
        teacher: The same, without gradients.
        center: (1, K) float32, in host memory.
        resolutions: Tensors that `augment` gives.
        clip_grad: Largest norm of a gradient; 0 for none.
    """

    student: nn.Module
    teacher: nn.Module
    center: Tensor
    resolutions: int
    clip_grad: float

    def forward(self, views: Sequence[Tensor], inputs: StepInputs, center: Tensor | None = None) -> tuple[Tensor, ...]:
        """As the other programs', of another center (1, K) than the program's own where one is given."""

    def forget_constants(self) -> None:
        """Called before each compilation: drop tensors that an earlier one made and that are kept for later calls."""

    def record(self, outputs: Sequence[Tensor]) -> None:
        """Take averages of what `forward` gave into center, counters and meters; the networks have moved already."""


class Moments(Protocol):
    """An optimizer as a device sees it that has its own: groups of parameters, and the state that checkpoints hold.

    Attributes:
        buckets: Parameters that share everything; each knows `parameters`, `decayed` and `last_layer`.
        state: Of each parameter `exp_avg`, `exp_avg_sq` and `step`.
        betas: Of both moments.
        eps: Added to the root of the second moment.
    """

    buckets: Sequence[Any]
    state: Mapping[Any, dict[str, Tensor]]
    betas: tuple[float, float]
    eps: float


class Device(abc.ABC):
    """One accelerator (or the CPU) as the rest of the house sees it."""

    name: str
    torch_device: torch.device
    collective_backend: str
    pins_memory: bool | str = False  # whether loaders pin memory; a name where torch must be told for which device
    fuses_updates = False  # whether torch's fused AdamW and its norms of lists run here
    reads_freely = False  # whether the host may look at a value of a step without waiting for it
    reserved_cores = 0  # of the host, that a process of this device keeps busy beside its loaders
    loader_start: str | None = None  # how loader processes start, where torch's default does not do
    parallel_settings: Mapping[str, Any] = {}  # what DistributedDataParallel wants on this device
    clips_by_default = True  # whether gradients are clipped where nothing says so
    refused: Mapping[str, str] = {}  # settings of a run that it does not support: what to do instead
    exchanges_gradients = False  # whether its own step averages gradients over processes
    updates_per_step = 1  # updates that one call of a training step makes
    compiles = False  # whether the networks are compiled for training, as asked for or as the device chose
    mode: str | None = None  # the execution mode, where the device has several; a checkpoint keeps it
    caution: str | None = None  # what somebody who trains in this mode should know, in one line

    @abc.abstractmethod
    def describe(self) -> str:
        """One line for the log: chip, mode, number format."""

    @abc.abstractmethod
    def place(self, batch: Any) -> Any:
        """Move a tensor or a named tuple of tensors to the device, without waiting where it can."""

    @abc.abstractmethod
    def autocast(self) -> AbstractContextManager[object]:
        """Forward passes inside it run in the chosen number format."""

    def count_micro_batches(self, accumulate_steps: int) -> int:
        """Equal parts of the batch that one call of a training step takes from the loader."""
        return accumulate_steps

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
    def __call__(self, batch: Any, inputs: Sequence[float], depth: Tensor | None = None) -> None:
        """Run one step.

        Args:
            batch: In host memory.
            inputs: The numbers of `StepInputs`, in its order.
            depth: Its last field for all micro-batches, (micro-batches, 2 L, V B) float32 in host memory.
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
