"""A CUDA graph on the CPU: the operators of a function, recorded, and run again on the same tensors.

As a driver does, recording leaves no trace in the tensors that were there before, a replay runs no
Python but the operators', and their results end in the tensors of the recording. A host read while
recording is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dino.devices.casting import cast_together
from dino.devices.cuda_graph import GraphStep
from dino.devices.eager import EagerDevice, EagerStep
from dino.verify.measure import READS

UNDECLARED = ("running_mean", "running_var")  # batch norm writes to them, and its schema is silent


def list_tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from list_tensors(part)


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recording(TorchDispatchMode):
    """Operators with what they read and gave, and what tensors held before."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.kept: list[Any] = []
        self.made: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        named = [*zip(func._schema.arguments, args, strict=False)]
        named += [
            (part, kwargs[part.name]) for part in func._schema.arguments if part.name in kwargs
        ]
        for part, value in named:
            written = part.alias_info is not None and part.alias_info.is_write
            if written or part.name in UNDECLARED:
                for tensor in list_tensors(value):
                    if place(tensor) not in self.made:
                        self.before.setdefault(place(tensor), (tensor, tensor.clone()))
        result = func(*args, **kwargs)
        self.kept += [args, kwargs, result]  # no address may be reused
        given = {place(tensor) for tensor in list_tensors([args, [*kwargs.values()]])}
        new = [tensor for tensor in list_tensors(result) if place(tensor) not in given]
        self.made |= {place(tensor) for tensor in new}
        if new or func._schema.is_mutable:
            self.operators.append((func, args, kwargs, new))
        return result

    def undo(self) -> None:
        for tensor, before in self.before.values():
            tensor.copy_(before)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, recorded in self.operators:
                result = func(*args, **kwargs)
                given = {place(tensor) for tensor in list_tensors([args, [*kwargs.values()]])}
                new = [tensor for tensor in list_tensors(result) if place(tensor) not in given]
                for old, tensor in zip(recorded, new, strict=True):
                    old.copy_(tensor)


class FakeRecorder:
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.aside, self.recorded, self.replayed = 0, 0, 0

    def run_aside(self, function: Callable[[], None]) -> None:
        self.aside += 1
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        recording = Recording()
        with recording:
            function()
        with torch.no_grad():
            recording.undo()

        def replay() -> None:
            self.replayed += 1
            recording.replay()

        return replay


class LikeCuda(EagerDevice):
    """The CPU, with everything that a step asks of a device answered as cuda does."""

    fuses_updates, fuses_lists = True, True

    def __init__(self, precision: str = "bf16", *, replays: bool = False) -> None:
        super().__init__("cuda", torch.device("cpu"), "gloo", precision)
        self.replays, self.recorder = replays, FakeRecorder()

    def prepare_network(self, stages: Any) -> None:
        if self.precision == "bf16":
            cast_together(stages)

    def synchronize(self) -> None:
        if self.recorder.recorded > self.recorder.replayed:
            raise RuntimeError("operation not permitted when stream is capturing")

    def compile_train(self, program: Any, optimizer: Any, micro_batches: int) -> EagerStep:
        if self.replays:
            return GraphStep(self, program, optimizer, micro_batches, self.recorder)
        return EagerStep(self, program, optimizer, micro_batches)
