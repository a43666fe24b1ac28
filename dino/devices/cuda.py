"""NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from dino.devices.base import TrainProgram, TrainStep
from dino.devices.batch_norm import run_parts, synchronize
from dino.devices.casting import cast_together
from dino.devices.cuda_graph import CudaRecorder, GraphStep, ReplayedProgram
from dino.devices.eager import AUTOCAST_TYPES, EagerDevice
from dino.devices.op_lists import OpLists
from dino.devices.untyped import build_stream
from dino.errors import DeviceError


class FusedBatchNorm(nn.SyncBatchNorm):
    """Batch norm over all processes by torch's kernels, with the further parts of timm's."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        return run_parts(self, super().forward(inputs))


class CudaDevice(EagerDevice):
    """One GPU of this host, NCCL; fp32, bf16, fp16 and op lists."""

    fuses_lists = True
    pins_memory = True

    def __init__(self, precision: str, local_rank: int, lists: OpLists | None = None) -> None:
        """Open GPU `local_rank`.

        Raises:
            DeviceError: There is no GPU, or this host has more processes than GPUs.
        """
        if not torch.cuda.is_available():
            raise DeviceError(
                "`device` cuda: torch finds no GPU here (nvidia-smi shows why)",
                remedy="use `device` cpu",
            )
        if local_rank >= torch.cuda.device_count():
            raise DeviceError(
                f"process {local_rank} on this host has no GPU: "
                f"there are {torch.cuda.device_count()}",
                remedy="start one process per GPU",
            )
        torch.cuda.set_device(local_rank)
        torch.backends.cudnn.benchmark = True  # shapes never change
        # By default torch rounds convolutions to TF32, but not matrix products.
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        super().__init__("cuda", torch.device("cuda", local_rank), "nccl", precision, lists)
        self.copies = build_stream()

    def describe(self) -> str:
        """See the base class."""
        return f"cuda ({torch.cuda.get_device_name()}), {self.precision}"

    def to_device(self, batch: Any) -> Any:
        """See the base class; pinned memory is copied on a separate stream.

        The host runs ahead of the device and uploads the next batch while this one computes. On the
        computing stream, the copy would have to wait. Not verified on hardware.
        """
        if not isinstance(batch, Tensor) or not batch.is_pinned():
            return super().to_device(batch)
        with torch.cuda.stream(self.copies):
            uploaded = batch.to(self.torch_device, non_blocking=True)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self.copies)
        # Otherwise the next copy could reuse the memory while this stream still reads it.
        uploaded.record_stream(computing)
        return uploaded

    @property
    def fuses_updates(self) -> bool:  # type: ignore[override]  # depends on the settings
        """See the base class; compilers fuse the written-out update, and do not know the kernel."""
        return not self.compiles

    def prepare_network(self, stages: Iterable[nn.Module]) -> None:
        """See the base class; a compiled network and op lists cast in their own way."""
        if self.precision in AUTOCAST_TYPES and not self.compiles:
            cast_together(stages)

    def synchronize_batch_norm(self, module: nn.Module) -> nn.Module:
        """See the base class; torch's SyncBatchNorm has fused kernels here."""
        return synchronize(module, FusedBatchNorm)

    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """See the base class."""
        if not self.replays:
            return super().compile_train(program, optimizer, micro_batches)
        recorded = cast(ReplayedProgram, program)
        return GraphStep(self, recorded, optimizer, micro_batches, CudaRecorder())

    def explain(self, error: RuntimeError) -> str | None:
        """See the base class."""
        if isinstance(error, torch.cuda.OutOfMemoryError):
            remedy = "lower `batch_size_per_device`, or train with `recompute` blocks"
            return f"the GPU's memory is full ({str(error).splitlines()[0]}); {remedy}"
        return None

    def synchronize(self) -> None:
        """See the base class."""
        torch.cuda.synchronize()

    def count_cards(self) -> int:
        """See the base class."""
        return torch.cuda.device_count()

    def memory_peak(self) -> int | None:
        """See the base class."""
        return torch.cuda.max_memory_allocated()

    def memory_total(self) -> int:
        """See the base class."""
        return torch.cuda.mem_get_info()[1]
