"""Devices that run the step phase by phase: cpu and cuda as they are, hpu with hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from dino.devices.base import Device, StepInputs, TrainProgram, TrainStep, split_batch
from dino.devices.batch_norm import synchronize
from dino.devices.op_lists import CastingOps, OpLists
from dino.devices.untyped import run_backward

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class EagerDevice(Device):
    """Everything that does not depend on the vendor."""

    def __init__(
        self,
        name: str,
        torch_device: torch.device,
        collective_backend: str,
        precision: str,
        lists: OpLists | None = None,
    ) -> None:
        """Remember the device and the number format: fp32, bf16, fp16, or ops, which `lists` then describe."""
        self.name = name
        self.torch_device = torch_device
        self.collective_backend = collective_backend
        self.precision = precision
        self.casting = CastingOps(torch_device.type, lists) if lists is not None else None

    def describe(self) -> str:
        """See the contract."""
        return f"{self.name}, {self.precision}"

    def place(self, batch: Any) -> Any:
        """See the contract."""
        if isinstance(batch, Tensor):
            return batch.to(self.torch_device, non_blocking=True)
        return type(batch)(*(self.place(field) for field in batch))

    def autocast(self) -> AbstractContextManager[object]:
        """See the contract."""
        if self.casting is not None:
            return self.casting.autocast()
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, dtype=AUTOCAST_TYPES[self.precision])

    def compile_train(self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int) -> TrainStep:
        """See the contract."""
        return EagerStep(self, program, optimizer, micro_batches)

    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the contract."""
        module = module.to(self.torch_device).eval()

        @torch.inference_mode()
        def infer(images: Tensor) -> Tensor:
            features: Tensor = module(images)
            return features

        return infer

    def compile_module(self, module: nn.Module) -> nn.Module:
        """See the contract."""
        return cast(nn.Module, torch.compile(module))

    def synchronize_batch_norm(self, module: nn.Module) -> nn.Module:
        """See the contract."""
        return synchronize(module)

    def synchronize(self) -> None:
        """See the contract; on the CPU nothing is queued."""

    def build_scaler(self) -> torch.amp.GradScaler | None:
        """A loss scale where the number format needs one (fp16)."""
        return torch.amp.GradScaler(self.torch_device.type) if self.precision == "fp16" else None

    def mark_step(self) -> None:
        """Called after forward, backward and update; lazy devices cut their graph here."""


class EagerStep(TrainStep):
    """Forward, backward, update, one phase after the other."""

    def __init__(
        self, device: EagerDevice, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> None:
        """Bind a program to its optimizer."""
        self.device, self.program, self.optimizer, self.micro_batches = device, program, optimizer, micro_batches
        self.scaler = device.build_scaler()

    def __call__(self, batch: Any, inputs: Sequence[float], depth: Tensor | None = None) -> None:
        """See the contract."""
        each = self._place_inputs(inputs, depth)
        tensors = each[0]
        self.optimizer.zero_grad(set_to_none=True)
        statistics = self.program.copy_statistics()
        exchanged = self._forward_backward(self.device.place(batch), each)
        loss_scale = None
        if self.scaler is not None:
            loss_scale = self.scaler.scale(torch.ones_like(tensors.momentum))
            self.scaler.unscale_(self.optimizer)
        update_inputs, update = self.program.before_update(exchanged, tensors, loss_scale)
        self.optimizer.step(update_inputs)
        if self.scaler is not None:
            self.scaler.update()
        self.program.after_update(update, statistics)
        self.device.mark_step()

    def _place_inputs(self, inputs: Sequence[float], depth: Tensor | None) -> list[StepInputs]:
        """The inputs of each micro-batch, which go to the device as one tensor."""
        numbers = torch.tensor(inputs, dtype=torch.float32, device="cpu")
        if depth is None:
            return [StepInputs(*self.device.place(numbers).unbind())] * self.micro_batches
        placed = self.device.place(torch.cat([depth.flatten(), numbers]))
        drawn, numbers = torch.split(placed, [depth.numel(), len(numbers)])
        shared = StepInputs(*numbers.unbind())
        return [shared._replace(depth=part) for part in drawn.view(depth.shape).unbind()]

    def _forward_backward(self, batch: Any, inputs: Sequence[StepInputs]) -> Any:
        """Forward and backward over every micro-batch; gives the outputs' averages as the program exchanges them."""
        sums: tuple[Tensor, ...] = ()
        exchanged = None
        parts = zip(split_batch(batch, self.micro_batches), inputs, strict=True)
        for index, (micro, numbers) in enumerate(parts, start=1):
            last = index == self.micro_batches
            with contextlib.nullcontext() if last else self.program.no_sync():
                loss, *rest = self.program.forward(self.program.augment(micro), numbers)
                outputs = (loss.detach(), *rest)
                sums = tuple(a + b for a, b in zip(sums, outputs, strict=True)) if sums else outputs
                if last:
                    mean = sums if index == 1 else tuple(part / index for part in sums)
                    exchanged = self.program.exchange(mean)
                self.device.mark_step()
                run_backward(self._scaled(loss / self.micro_batches))
                self.device.mark_step()
        return exchanged

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def state_dict(self) -> dict[str, Any]:
        """See the contract."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See the contract."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
