"""Devices that run a step operator by operator: cpu, cuda, and hpu with additional hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dino.cache import protect_compiled_code
from dino.devices.base import Device, TrainProgram, TrainStep, split_batch
from dino.devices.batch_norm import AllReduceBatchNorm, synchronize
from dino.devices.op_lists import CastingOps, OpLists
from dino.devices.untyped import run_backward

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class EagerDevice(Device):
    """The part of an eager device that does not depend on the vendor.

    Attributes:
        compile_options: Arguments of torch.compile.
    """

    compile_options: Mapping[str, Any] = {}

    def __init__(
        self,
        name: str,
        torch_device: torch.device,
        collective_backend: str,
        precision: str,
        lists: OpLists | None = None,
    ) -> None:
        """Set the device and the number format: fp32, bf16, fp16, or ops, which needs `lists`."""
        self.name = name
        self.torch_device = torch_device
        self.collective_backend = collective_backend
        self.precision = precision
        self.casting = CastingOps(torch_device.type, lists) if lists is not None else None

    def describe(self) -> str:
        """See the base class."""
        return f"{self.name}, {self.precision}"

    def to_device(self, batch: Any) -> Any:
        """See the base class."""
        if isinstance(batch, Tensor):
            return batch.to(self.torch_device, non_blocking=True)
        return type(batch)(*(self.to_device(field) for field in batch))

    def autocast(self) -> AbstractContextManager[object]:
        """See the base class."""
        if self.casting is not None:
            return self.casting.autocast()
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, dtype=AUTOCAST_TYPES[self.precision])

    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """See the base class."""
        return EagerStep(self, program, optimizer, micro_batches)

    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        module = module.to(self.torch_device).eval()

        @torch.inference_mode()
        def infer(images: Tensor) -> Tensor:
            features: Tensor = module(images)
            return features

        return infer

    def compile_module(self, module: nn.Module, *, in_parts: bool = False) -> nn.Module:
        """See the base class."""
        protect_compiled_code()
        options = dict(self.compile_options)
        if in_parts:
            options["backend"] = split_backend(options.get("backend"), self.bucket_bytes)
        return cast(nn.Module, torch.compile(module, **options))

    def compile_phase(self, phase: Callable[..., Any], *, whole: bool = True) -> Callable[..., Any]:
        """See the base class."""
        if not self.compiles or self.reads_freely:
            return phase
        protect_compiled_code()
        return CompiledPhase(phase, {**self.compile_options, "fullgraph": whole})

    def synchronize_batch_norm(self, module: nn.Module) -> nn.Module:
        """See the base class."""
        return synchronize(module, AllReduceBatchNorm)

    def synchronize(self) -> None:
        """See the base class; on the CPU nothing is queued."""

    def build_scaler(self) -> torch.amp.GradScaler | None:
        """Build a loss scaler if the number format needs one (fp16)."""
        return torch.amp.GradScaler(self.torch_device.type) if self.precision == "fp16" else None

    def mark_step(self) -> None:
        """End a phase (forward, backward, update); lazy devices cut their graph here."""


def split_backend(name: str | None, bucket_bytes: int) -> Callable[..., Any]:
    """Return a compiler that makes one graph per bucket of parameters.

    A graph's gradients exist only when all of its backward pass has run, so those of one graph
    could not be exchanged meanwhile. Torch splits graphs like this for DistributedDataParallel.
    """
    from torch._dynamo.backends.distributed import DDPOptimizer
    from torch._dynamo.backends.registry import lookup_backend

    compile_graph = lookup_backend(name or "inductor")
    return DDPOptimizer(bucket_bytes, compile_graph, first_bucket_cap=bucket_bytes).compile_fn


class CompiledPhase:
    """A function that runs operator by operator once and as one graph from then on.

    The first call computes what later ones keep (`dino.constants`), which is no part of the graph.
    So the second call compiles.
    """

    def __init__(self, phase: Callable[..., Any], options: Mapping[str, Any]) -> None:
        """Prepare to compile a function; `options` are those of torch.compile."""
        self.next = phase
        self.compiled = torch.compile(phase, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        run, self.next = self.next, self.compiled
        return run(*args, **kwargs)


class EagerStep(TrainStep):
    """Runs a program's step operator by operator, and is its engine."""

    def __init__(
        self,
        device: EagerDevice,
        program: TrainProgram,
        optimizer: torch.optim.Optimizer,
        micro_batches: int,
    ) -> None:
        """Bind a program to its optimizer."""
        self.device, self.program = device, program
        self.optimizer, self.micro_batches = optimizer, micro_batches
        self.reads_freely, self.fuses_updates = device.reads_freely, device.fuses_updates
        self.fuses_lists = device.fuses_lists
        self.scaler = device.build_scaler()

    def __call__(self, batch: Any, inputs: Any) -> None:
        """See the base class."""
        numbers = self.upload(inputs)
        self.optimizer.zero_grad(set_to_none=True)
        self.program.step(self, self.device.to_device(batch), numbers)
        if self.scaler is not None:
            self.scaler.update()
        self.device.mark_step()

    def upload(self, inputs: Any) -> Any:
        """Copy a named tuple of host tensors to the device in one transfer; None stays None."""
        fields = {name: field for name, field in inputs._asdict().items() if field is not None}
        packed = self.device.to_device(torch.cat([field.reshape(-1) for field in fields.values()]))
        parts = torch.split(packed, [field.numel() for field in fields.values()])
        pairs = zip(fields.items(), parts, strict=True)
        return inputs._replace(**{name: part.reshape(field.shape) for (name, field), part in pairs})

    def split(self, batch: Any) -> Iterator[Any]:
        """See `Engine`."""
        return split_batch(batch, self.micro_batches)

    def autocast(self) -> AbstractContextManager[object]:
        """See `Engine`."""
        return self.device.autocast()

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        self.device.mark_step()
        loss = loss / self.micro_batches
        run_backward(loss if self.scaler is None else self.scaler.scale(loss))
        self.device.mark_step()

    def unscale(self) -> Tensor | None:
        """See `Engine`."""
        if self.scaler is None:
            return None
        scale = self.scaler.scale(torch.ones((), device=self.device.torch_device))
        self.scaler.unscale_(self.optimizer)
        return scale

    def update(self, inputs: Any) -> None:
        """See `Engine`."""
        self.optimizer.step(inputs)

    def state_dict(self) -> dict[str, Any]:
        """See the base class."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the base class."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
