"""Intel Gaudi, through the Habana bridge. Not yet verified on hardware; tests run it on a simulated card.

The vendor's fused pieces are left alone, because they compute something else: FusedAdamW counts steps by group (the
last layer, unfrozen late, would start without bias correction) and adds its epsilon before the correction,
FusedClipNorm clips by the norm of all gradients together where DINO clips each, and FusedEMA ramps its momentum up on
its own. FusedSDPA would compute the same as torch's attention; it waits for a card to be measured on.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dino.devices.base import TrainProgram, TrainStep
from dino.devices.eager import EagerDevice
from dino.devices.hpu.mode import VARIABLE as LAZY
from dino.devices.hpu.mode import choose_mode
from dino.devices.hpu.software import BRIDGE, is_bridge_installed
from dino.devices.op_lists import OpLists
from dino.errors import DeviceError

logger = logging.getLogger(__name__)

LISTS = ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "PT_HPU_AUTOCAST_FP32_OPS_LIST")
FAILURES = {  # what the bridge's errors hold, and what they mean
    "Device acquire failed": "the card cannot be acquired: another process holds it, or driver and software differ; "
    "`python -m dino.doctor` tells which",
    "Allocation failed for size": "the card's memory is full; lower --batch_size_per_device, "
    "or train with --recompute blocks",
}


class HpuDevice(EagerDevice):
    """One Gaudi card, hccl; fp32, bf16 and op lists; eager, compiled or lazy."""

    pins_memory = True
    loader_start = "forkserver"  # the driver's handles do not survive a fork
    # One large bucket: each exchange cuts the lazy graph. Statistics of batch norm are synchronised by the norm itself.
    parallel_settings: Mapping[str, int] = {"bucket_cap_mb": 256}

    def __init__(
        self,
        precision: str,
        lists: OpLists | None = None,
        *,
        lazy_mode: bool | None = None,
        compiles: bool | None = None,
    ) -> None:
        """Import the bridge in the chosen mode, its environment complete, and open the card of this process.

        Raises:
            DeviceError: No bridge, one that was imported too early, no card, or fp16.
            OptionError: Flags and variables that contradict each other.
        """
        if not is_bridge_installed():
            raise DeviceError(
                "--device hpu: the Habana bridge (habana_frameworks) is not installed; "
                "start from a Gaudi container, or use --device cuda or cpu"
            )
        if precision == "fp16":
            raise DeviceError("--precision fp16 needs --device cuda; use bf16 or fp32 on hpu")
        chosen = choose_mode(
            lazy_mode=lazy_mode,
            compiles=compiles,
            variable=os.environ.get(LAZY),
            imported_lazy=find_imported_mode(),
            torch_version=torch.__version__,
        )
        if chosen.warning:
            logger.warning("%s", chosen.warning)
        self.lazy, self.compiles, self.mode = chosen.lazy, chosen.compiles, chosen.name
        complete_environment(choose_environment(self.lazy, lists))
        self._import_bridge()
        super().__init__("hpu", torch.device("hpu"), "hccl", "bf16" if precision == "ops" else precision)
        self.precision_name = precision

    def _import_bridge(self) -> None:
        try:
            core = importlib.import_module(f"{BRIDGE}.core")
            importlib.import_module(f"{BRIDGE}.distributed.hccl")
            self.hpu = importlib.import_module(f"{BRIDGE}.hpu")
            self.metric_global = importlib.import_module(f"{BRIDGE}.hpu.metrics").metric_global
        except (ImportError, AssertionError, OSError, RuntimeError) as error:
            raise DeviceError(
                f"the Habana bridge cannot be imported ({error}); `python -m dino.doctor` tells why"
            ) from error
        self.mark_step = core.mark_step

    def describe(self) -> str:
        """See the contract."""
        return f"hpu, {self.precision_name}, {self.mode} mode"

    def end_phase(self) -> None:
        """Cut the lazy graph."""
        if self.lazy:
            self.mark_step()

    def compile_train(self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int) -> TrainStep:
        """See the contract; what building the networks has queued is cut off, or the first graph would hold it too."""
        self.end_phase()
        return super().compile_train(program, optimizer, micro_batches)

    def compile_module(self, module: nn.Module) -> nn.Module:
        """See the contract."""
        return torch.compile(module, backend="hpu_backend", dynamic=False)

    def read_counters(self) -> dict[str, float]:
        """See the contract: what costs time on this device and grows only at first."""
        counters = {"hpu/graph_compilations": "graph_compilation", "hpu/cpu_fallbacks": "cpu_fallback"}
        metrics = {tag: self.metric_global(name) for tag, name in counters.items()}
        return {tag: float(dict(metric.stats())["TotalNumber"]) for tag, metric in metrics.items() if metric}

    def explain(self, error: RuntimeError) -> str | None:
        """See the contract."""
        return next((meaning for text, meaning in FAILURES.items() if text in str(error)), None)

    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the contract; no HPU graph, which exists in lazy mode only and overwrites the last call's output."""
        infer = super().compile_eval(module)

        def infer_and_cut(images: Tensor) -> Tensor:
            features = infer(images)
            self.end_phase()
            return features

        return infer_and_cut

    def synchronize(self) -> None:
        """See the contract."""
        self.hpu.synchronize()

    def memory_peak(self) -> int:
        """See the contract."""
        return int(self.hpu.max_memory_allocated())

    def memory_total(self) -> int:
        """See the contract."""
        return int(self.hpu.memory_stats()["Limit"])


def find_imported_mode() -> bool | None:
    """Whether the bridge that is imported already, by whoever, runs in lazy mode; None where none is imported."""
    if BRIDGE not in sys.modules:
        return None
    return bool(importlib.import_module(f"{BRIDGE}.utils.internal").is_lazy())


def choose_environment(lazy: bool, lists: OpLists | None) -> dict[str, str]:
    """The variables that the bridge reads once, when it is imported."""
    told = os.environ.get(LAZY)
    chosen = {
        LAZY: told if lazy and told is not None else str(int(lazy)),
        # The exact GELU of the paper's code, where the bridge takes the tanh form by default.
        "PT_HPU_FORCE_TANH_FOR_GELU": os.environ.get("PT_HPU_FORCE_TANH_FOR_GELU", "0"),
    }
    if lists is not None:
        chosen |= {name: _write_list(names) for name, names in zip(LISTS, (lists.bf16, lists.fp32), strict=True)}
    return chosen


def _write_list(names: Sequence[str]) -> str:
    """Write names as the bridge reads them, bare lines; equal lists are one file, whichever process writes it."""
    content = "\n".join(names).encode()
    folder = Path(tempfile.gettempdir(), f"dino_op_lists_{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    path, partial = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.txt", folder / f"{os.getpid()}.tmp"
    partial.write_bytes(content)
    partial.replace(path)
    return str(path)


def complete_environment(wanted: Mapping[str, str]) -> None:
    """Set variables before the bridge is imported.

    Raises:
        DeviceError: It is imported already, with other values.
    """
    if BRIDGE in sys.modules:
        late = [f"{name}={value}" for name, value in wanted.items() if os.environ.get(name) != value]
        if late:
            raise DeviceError(
                f"the Habana bridge was imported before {' '.join(late)} was set; import dino before torch"
            )
    os.environ.update(wanted)
