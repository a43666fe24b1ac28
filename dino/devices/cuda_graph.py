"""A whole training step as one CUDA graph, which the host launches with one call.

The driver records the kernels of one step with the addresses of their tensors; a replay runs the
same kernels on the same addresses, and no Python. So what changes from step to step is copied into
tensors that stay, and what a step computes must end in tensors that stay. Not verified on hardware:
the tests replay a recording of operators on the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from dino.devices.base import TrainProgram
from dino.devices.eager import EagerDevice, EagerStep
from dino.devices.untyped import build_stream, record_graph
from dino.errors import DeviceError

# Steps that run operator by operator first. The first uploads constants and lets cudnn choose; with
# torch.compile, the second compiles; the last ones only allocate.
WARM_UP = 4


class ReplayedProgram(TrainProgram, Protocol):
    """A program whose step can be recorded.

    Attributes:
        enter: Called with the name of each phase of a step as it begins.
    """

    enter: Callable[[str], None]

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors that steps replace, besides networks and optimizer."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Use these tensors from now on."""


class Recorder(Protocol):
    """Records what a function launches."""

    def run_aside(self, function: Callable[[], None]) -> None:
        """Run a function as it will be recorded, but execute it."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record the kernels of a function without running them; return what runs them."""


class CudaRecorder:
    """Records CUDA graphs on a stream of its own, since the default stream cannot be recorded."""

    def __init__(self) -> None:
        """Open the stream."""
        self.stream = build_stream()

    def run_aside(self, function: Callable[[], None]) -> None:
        """See `Recorder`."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            function()
        current.wait_stream(self.stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`."""
        return record_graph(self.stream, function)


class GraphStep(EagerStep):
    """Runs a few steps operator by operator, records one, and replays it from then on."""

    def __init__(
        self,
        device: EagerDevice,
        program: ReplayedProgram,
        optimizer: torch.optim.Optimizer,
        micro_batches: int,
        recorder: Recorder,
    ) -> None:
        """Bind a program to its optimizer."""
        super().__init__(device, program, optimizer, micro_batches)
        self.program: ReplayedProgram = program
        self.recorder, self.steps = recorder, 0
        self.held: tuple[Any, Any] | None = None  # batch and inputs, which steps read
        self.state: dict[str, Tensor] = {}  # of the program, which steps update
        self.replay: Callable[[], None] | None = None
        # It replaces the moments, and the graph knows the old ones.
        optimizer.register_load_state_dict_post_hook(lambda _: self.forget())

    def __call__(self, batch: Any, inputs: Any) -> None:
        """See the base class.

        Raises:
            DeviceError: A batch has another shape than the first one.
        """
        self._hold(self.device.to_device(batch), self.upload(inputs))
        self._hold_state()
        self.steps += 1
        if self.steps <= WARM_UP:
            self.recorder.run_aside(self._run)
            return
        if self.replay is None:
            self.optimizer.zero_grad(set_to_none=True)  # the graph has gradients of its own
            with self._silent():
                self.replay = self.recorder.record(self._run)
        self.replay()

    def forget(self) -> None:
        """Drop the recording; the next step warms up again."""
        self.replay, self.steps = None, 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        super().load_state_dict(state)
        self.forget()

    def _run(self) -> None:
        """One step from held tensors to held tensors."""
        assert self.held is not None
        self.optimizer.zero_grad(set_to_none=True)
        self.program.step(self, *self.held)
        for name, value in self.program.state_dict().items():
            self.state[name].copy_(value)
        self.program.load_state_dict(self.state)

    def _hold(self, batch: Any, inputs: Any) -> None:
        """Copy a batch and its inputs into the tensors that the graph reads."""
        if self.held is None:
            # Copies: a batch that was on the device already stays its owner's.
            self.held = type(batch)(*(field.clone() for field in batch)), inputs
            return
        pairs = [
            pair
            for held, new in zip(self.held, (batch, inputs), strict=True)
            for pair in zip(held, new, strict=True)
        ]
        for held, new in pairs:
            if _shape(held) != _shape(new):
                raise DeviceError(
                    f"`cuda_graph` needs batches of one shape: {_shape(held)} before, "
                    f"{_shape(new)} now",
                    remedy="leave it out",
                )
            if held is not None:
                held.copy_(new)

    def _hold_state(self) -> None:
        """Keep the program's state in the same tensors, whoever replaced them since."""
        current = self.program.state_dict()
        if not self.state:
            self.state = current
        for name, held in self.state.items():
            if current[name] is not held:
                held.copy_(current[name])
        self.program.load_state_dict(self.state)

    @contextlib.contextmanager
    def _silent(self) -> Iterator[None]:
        """Tell nobody the phases of a step that is recorded: a clock would wait for the device."""
        enter, self.program.enter = self.program.enter, lambda _: None
        try:
            yield
        finally:
            self.program.enter = enter


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
