"""Intel Gaudi through the Habana bridge.

Not yet verified on hardware; tests run it on a simulated card.

The vendor's fused operators are not used because they compute something else. FusedAdamW counts
steps per group (the last layer, unfrozen late, would start without bias correction) and adds its
epsilon before the correction. FusedClipNorm clips by the norm of all gradients together, while DINO
clips each one. FusedEMA ramps up its momentum by itself. FusedSDPA computes the same as torch's
attention, but it has not been measured on a card.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dino.devices.attention import Attend
from dino.devices.base import TrainProgram, TrainStep
from dino.devices.eager import EagerDevice
from dino.devices.hpu.attention import choose_attention
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
from dino.errors import DeviceError, OptionError

logger = logging.getLogger(__name__)

VENDORS = (VENDOR_BF16, VENDOR_FP32)  # in the order of LISTS


class HpuDevice(EagerDevice):
    """One Gaudi card, hccl; fp32, bf16 and op lists; eager, compiled or lazy."""

    loader_start = "forkserver"  # the driver's handles do not survive a fork
    compile_options: Mapping[str, object] = {"backend": "hpu_backend", "dynamic": False}

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
        attention: str | None = None,
    ) -> None:
        """Complete the environment, import the bridge in the chosen mode and open the card.

        Args:
            precision: fp32, bf16, or ops, which needs `lists`.
            lists: The number format of each op.
            lazy_mode: The setting `lazy_mode`.
            compiles: The setting `compile`.
            kept: The mode in the checkpoint that the run continues.
            trains: Whether networks are trained; an evaluation compiles nothing.
            local_rank: Rank of this process on its host.
            output_dir: The run's output folder, if it has one.
            attention: The setting `attention`.

        Raises:
            DeviceError: The bridge is missing, was imported too early or follows other lists; there
                is no card; or the format is fp16.
            OptionError: Settings and variables contradict each other, or this release lacks one.
        """
        if not is_bridge_installed():
            raise DeviceError(
                "`device` hpu: the Habana bridge (habana_frameworks.torch) is not installed",
                remedy="start from a Gaudi container, or use `device` cuda or cpu",
            )
        if precision == "fp16":
            raise DeviceError("`precision` fp16 needs `device` cuda", remedy="use bf16 or fp32")
        mode = choose_mode(
            lazy_mode=lazy_mode,
            compiles=compiles if trains else False,
            variable=os.environ.get(VARIABLE),
            imported_lazy=_is_imported_lazy(),
            torch_version=torch.__version__,
            kept=kept,
        )
        _log_mode(mode, kept)
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
        self.attention = choose_attention(attention)
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
                remedy="`python -m dino.doctor` shows why",
            ) from error
        self.cut_graph = core.mark_step

    def describe(self) -> str:
        """See the base class."""
        return f"hpu, {self.precision_name}, {self.mode} mode{', ' * bool(self.lists)}{self.lists}"

    def _check_lists(self, contents: Mapping[str, str]) -> None:
        """Check that the bridge follows these lists; without lists, there is nothing to check."""
        if not contents:
            return
        bf16, fp32 = (
            frozenset(contents[name].split("\n")) if name in contents else vendors
            for name, vendors in zip(LISTS, VENDORS, strict=True)
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
                "cannot check which op lists are in force: yours and the vendor's agree on all ops "
                "that could show it"
            )

    def mark_step(self) -> None:
        """Cut the lazy graph."""
        if self.lazy:
            self.cut_graph()

    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """See the base class; cuts the graph, or the first step would also build the networks."""
        self.mark_step()
        return super().compile_train(program, optimizer, micro_batches)

    def read_counters(self) -> dict[str, float]:
        """See the base class; these events cost time and should occur only at the start."""
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

    def find_fused_attention(self) -> Attend | None:
        """See the base class."""
        with contextlib.suppress(OptionError):
            return choose_attention("fused")
        return None

    def explain(self, error: RuntimeError) -> str | None:
        """See the base class."""
        cause, text = explain_failure(str(error)), str(error)
        is_dynamo = isinstance(error, torch._dynamo.exc.TorchDynamoException)
        if self.compiles and (is_dynamo or is_of_compiler(text)):
            words = " ".join([line.strip() for line in text.splitlines() if line.strip()][:2])
            cause = cause or f"the network does not compile ({words})"
            return f"{cause}; `lazy_mode` false trains it uncompiled"
        return cause

    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class.

        HPU graphs are not used: they need lazy mode and overwrite the last call's output.
        """
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
    def bucket_bytes(self) -> int:  # type: ignore[override]  # depends on the mode
        """See the base class; each exchange cuts the lazy graph, so its buckets are large."""
        return (256 if self.lazy else 64) * 2**20

    @property
    def reserved_cores(self) -> int:  # type: ignore[override]  # depends on the mode
        """See the base class; eager and compiled mode keep two threads busy (docs/gaudi.md)."""
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
    """Return whether loaders pin memory, or the device name that torch needs for it.

    Before 2.7, torch pins for cuda only unless it is given a device. The thread that pins for
    another device exists only in the vendor's build then (dataloader.py).
    """
    release = read_release(torch_version)
    is_old = release is not None and release < (2, 7)
    return "hpu" if is_vendor_torch(torch_version) and is_old else True


def _is_imported_lazy() -> bool | None:
    """Whether an already imported bridge runs in lazy mode; None if it is not imported yet."""
    if BRIDGE not in sys.modules:
        return None
    internal = importlib.import_module(f"{BRIDGE}.utils.internal")
    return bool(internal.is_lazy())


def _prepare(
    mode: Mode, contents: Mapping[str, str], local_rank: int, output_dir: str | None
) -> None:
    """Complete the environment for the bridge, or check what an imported bridge has read."""
    imported = BRIDGE in sys.modules
    modules = find_modules(os.environ, local_rank)
    variables = choose_variables(mode, os.environ) | ({MODULES: modules} if modules else {})
    complete_environment(
        variables, imported=imported, release=read_release(find_version(*BRIDGE_PACKAGES))
    )
    os.environ.update(give_lists(contents, imported=imported, output_dir=output_dir))


def _log_mode(mode: Mode, kept: str | None) -> None:
    """Log the mode's warning and a change since the checkpoint, if any."""
    if mode.warning:
        logger.warning("%s", mode.warning)
    if kept not in (None, mode.name):
        logger.info(
            "mode changed since the checkpoint: %s -> %s (%s)", kept, mode.name, mode.reason
        )


def _choose_lists(precision: str, lists: OpLists | None) -> dict[str, str]:
    """Return the op lists for the bridge by variable; {} without autocast or with its own lists."""
    if lists is not None:
        pairs = zip(LISTS, (lists.bf16, lists.fp32), strict=True)
        return {name: "\n".join(ops) for name, ops in pairs}
    return read_own_lists(os.environ) if precision == "bf16" else {}


def _name_lists(precision: str) -> str:
    """Return the log's words for the lists in force if the settings name none."""
    if precision == "fp32":
        return ""
    own = [os.environ[name] for name in LISTS if os.environ.get(name)]
    return f"op lists {', '.join(own)}" if own else "the vendor's op lists"
