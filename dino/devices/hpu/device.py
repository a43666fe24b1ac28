"""Intel Gaudi, through the Habana bridge. Not yet verified on hardware; tests run it on a simulated card.

The vendor's fused pieces are left alone, because they compute something else: FusedAdamW counts steps by group (the
last layer, unfrozen late, would start without bias correction) and adds its epsilon before the correction,
FusedClipNorm clips by the norm of all gradients together where DINO clips each, and FusedEMA ramps its momentum up on
its own. FusedSDPA would compute the same as torch's attention; it waits for a card to be measured on.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from dino.devices.base import TrainProgram, TrainStep
from dino.devices.eager import EagerDevice
from dino.devices.hpu.cards import MODULES, find_modules
from dino.devices.hpu.environment import (
    LISTS,
    choose_variables,
    complete_environment,
    give_lists,
    read_own_lists,
)
from dino.devices.hpu.failures import explain_failure, is_of_compiler
from dino.devices.hpu.mode import VARIABLE, Mode, choose_mode
from dino.devices.hpu.policy import VENDOR_BF16, VENDOR_FP32, check_policy
from dino.devices.hpu.software import (
    BRIDGE,
    BRIDGE_PACKAGES,
    find_version,
    is_bridge_installed,
    is_vendor_torch,
    read_release,
)
from dino.devices.op_lists import OpLists
from dino.errors import DeviceError

logger = logging.getLogger(__name__)

VENDORS = (VENDOR_BF16, VENDOR_FP32)  # in the order of LISTS


class HpuDevice(EagerDevice):
    """One Gaudi card, hccl; fp32, bf16 and op lists; eager, compiled or lazy."""

    loader_start = "forkserver"  # the driver's handles do not survive a fork
    # One large bucket: each exchange cuts the lazy graph. Statistics of batch norm are synchronized by the norm itself.
    parallel_settings: Mapping[str, int] = {"bucket_cap_mb": 256}

    def __init__(
        self,
        precision: str,
        lists: OpLists | None = None,
        *,
        lazy_mode: bool | None = None,
        compiles: bool | None = None,
        kept: str | None = None,
        trains: bool = True,
        local_rank: int = 0,
        output_dir: str | None = None,
    ) -> None:
        """Import the bridge in the chosen mode, its environment complete, and open the card of this process.

        Args:
            precision: fp32, bf16 or ops, which `lists` then describe.
            lists: Which op runs in which number format.
            lazy_mode: The setting.
            compiles: The setting `compile`.
            kept: The mode in the checkpoint that the run continues.
            trains: Whether networks are trained; what only evaluates compiles nothing.
            local_rank: Of this process on its host.
            output_dir: The run's output folder, if it has one.

        Raises:
            DeviceError: No bridge, one that was imported too early or follows other lists, no card, or fp16.
            OptionError: Flags and variables that contradict each other.
        """
        if not is_bridge_installed():
            raise DeviceError(
                "`device` hpu: the Habana bridge (habana_frameworks.torch) is not installed",
                remedy="start from a Gaudi container, or use `device` cuda or cpu",
            )
        if precision == "fp16":
            raise DeviceError(
                "`precision` fp16 needs `device` cuda", remedy="use bf16 or fp32 on hpu"
            )
        mode = choose_mode(
            lazy_mode=lazy_mode,
            compiles=compiles if trains else False,
            variable=os.environ.get(VARIABLE),
            imported_lazy=_is_imported_lazy(),
            torch_version=torch.__version__,
            kept=kept,
        )
        _tell(mode, kept)
        self.lazy, self.compiles, self.mode = mode.lazy, mode.compiles, mode.name
        self.caution = mode.caution if trains else None
        self.lists = lists.source if lists else _name_lists(precision)
        contents = _choose_lists(precision, lists)
        _prepare(mode, contents, local_rank, output_dir)
        self._import_bridge()
        super().__init__(
            "hpu", torch.device("hpu"), "hccl", "bf16" if precision == "ops" else precision
        )
        self.precision_name, self.pins_memory = precision, choose_pinning(torch.__version__)
        self._check_lists(contents)

    def _import_bridge(self) -> None:
        try:
            core = importlib.import_module(f"{BRIDGE}.core")
            importlib.import_module(f"{BRIDGE}.distributed.hccl")
            self.hpu = importlib.import_module(f"{BRIDGE}.hpu")
            self.metric_global = importlib.import_module(f"{BRIDGE}.hpu.metrics").metric_global
        except (ImportError, AssertionError, OSError, RuntimeError) as error:
            raise DeviceError(
                f"the Habana bridge cannot be imported ({error})",
                remedy="`python -m dino.doctor` tells why",
            ) from error
        self.cut_graph = core.mark_step

    def describe(self) -> str:
        """See the base class."""
        return f"hpu, {self.precision_name}, {self.mode} mode{', ' * bool(self.lists)}{self.lists}"

    def _check_lists(self, contents: Mapping[str, str]) -> None:
        """See that the bridge follows these lists; where none were given, its own decide by themselves."""
        if not contents:
            return
        given = [
            frozenset(contents[name].split("\n")) if name in contents else None for name in LISTS
        ]
        bf16, fp32 = (
            own if own is not None else vendors for own, vendors in zip(given, VENDORS, strict=True)
        )
        try:
            proofs = check_policy(self.torch_device, self.autocast, bf16, fp32)
            self.mark_step()
        except RuntimeError as error:
            explained = self.explain(error)
            if explained is None:
                raise
            raise DeviceError(explained) from error
        if not proofs:
            logger.warning(
                "the op lists differ from the vendor's in no op that could show which of them decide"
            )

    def mark_step(self) -> None:
        """Cut the lazy graph."""
        if self.lazy:
            self.cut_graph()

    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """See the base class; what building the networks has queued is cut off, or the first graph would hold it too."""
        self.mark_step()
        return super().compile_train(program, optimizer, micro_batches)

    def compile_module(self, module: nn.Module) -> nn.Module:
        """See the base class."""
        return cast(nn.Module, torch.compile(module, backend="hpu_backend", dynamic=False))

    def read_counters(self) -> dict[str, float]:
        """See the base class: what costs time on this device and grows only at first."""
        counters = {
            "hpu/graph_compilations": "graph_compilation",
            "hpu/cpu_fallbacks": "cpu_fallback",
        }
        metrics = {tag: self.metric_global(name) for tag, name in counters.items()}
        return {
            tag: float(dict(metric.stats())["TotalNumber"])
            for tag, metric in metrics.items()
            if metric
        }

    def explain(self, error: RuntimeError) -> str | None:
        """See the base class."""
        known = explain_failure(str(error))
        if self.compiles and (
            isinstance(error, torch._dynamo.exc.TorchDynamoException) or is_of_compiler(str(error))
        ):
            words = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
            return f"{known or f'the network does not compile ({words})'}; `lazy_mode` false trains it uncompiled"
        return known

    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class; no HPU graph, which exists in lazy mode only and overwrites the last call's output."""
        infer = super().compile_eval(module)

        def infer_and_cut(images: Tensor) -> Tensor:
            features = infer(images)
            self.mark_step()
            return features

        return infer_and_cut

    def synchronize(self) -> None:
        """See the base class."""
        self.hpu.synchronize()

    @property
    def reserved_cores(self) -> int:  # type: ignore[override]  # known once the mode is
        """See the base class: eager and compiled mode launch without a pause, from two threads (docs/gaudi.md)."""
        return 0 if self.lazy else 2

    def count_cards(self) -> int:
        """See the base class."""
        return int(self.hpu.device_count())

    def memory_peak(self) -> int:
        """See the base class."""
        return int(self.hpu.max_memory_allocated())

    def memory_total(self) -> int:
        """See the base class."""
        return int(self.hpu.memory_stats()["Limit"])


def choose_pinning(torch_version: str) -> bool | str:
    """Whether loaders pin memory, or for which device where torch must be told: before 2.7 it pins for cuda alone.

    Upstream's torch before 2.7 has no thread that pins for another device (dataloader.py); the vendor's has.
    """
    release = read_release(torch_version)
    return (
        "hpu"
        if is_vendor_torch(torch_version) and release is not None and release < (2, 7)
        else True
    )


def _is_imported_lazy() -> bool | None:
    """Whether the bridge that is imported already, by whoever, runs in lazy mode; None where none is."""
    if BRIDGE not in sys.modules:
        return None
    internal = importlib.import_module(f"{BRIDGE}.utils.internal")
    return bool(internal.is_lazy())


def _prepare(
    mode: Mode, contents: Mapping[str, str], local_rank: int, output_dir: str | None
) -> None:
    """Complete the environment for the bridge, or see that one that is imported already has found it so."""
    imported = BRIDGE in sys.modules
    modules = find_modules(os.environ, local_rank)
    wanted = choose_variables(mode, os.environ) | ({MODULES: modules} if modules else {})
    complete_environment(
        wanted, imported=imported, release=read_release(find_version(*BRIDGE_PACKAGES))
    )
    os.environ.update(give_lists(contents, imported=imported, output_dir=output_dir))


def _tell(mode: Mode, kept: str | None) -> None:
    """Log what is worth a line: a warning, a change since the checkpoint."""
    if mode.warning:
        logger.warning("%s", mode.warning)
    if kept not in (None, mode.name):
        logger.info(
            "mode changed since the checkpoint: %s -> %s (%s)", kept, mode.name, mode.reason
        )


def _choose_lists(precision: str, lists: OpLists | None) -> dict[str, str]:
    """Contents of the op lists to give the bridge, by variable; none where no autocast or its own are meant."""
    if lists is not None:
        return {
            name: "\n".join(ops) for name, ops in zip(LISTS, (lists.bf16, lists.fp32), strict=True)
        }
    return read_own_lists(os.environ) if precision == "bf16" else {}


def _name_lists(precision: str) -> str:
    """Words for the log: which lists decide in a run that was given none."""
    own = [os.environ[name] for name in LISTS if os.environ.get(name)]
    return (
        ""
        if precision == "fp32"
        else f"op lists {', '.join(own)}"
        if own
        else "the vendor's op lists"
    )
