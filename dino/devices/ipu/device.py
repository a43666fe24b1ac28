"""Graphcore IPUs through PopTorch: the whole step is compiled, including update and teacher.

Not verified on hardware; `docs/ipu.md` says what tests on a stand-in prove and what they cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dino.devices.base import Device, TrainProgram, TrainStep
from dino.devices.config import IpuConfig
from dino.devices.ipu.step import IpuStep, explain_errors
from dino.devices.ipu.traced import TracedProgram, replace_gelu
from dino.errors import DeviceError, OptionError

logger = logging.getLogger(__name__)

WRAPPER = "poptorch"
# Share of each chip's memory for temporary values of matrix products, as in the published recipes.
MEMORY_SHARE = 0.15
LOSS_SCALE = 128.0  # of the published recipes in half precision


class IpuDevice(Device):
    """The IPUs of one process: one copy of the model, or several."""

    name = "ipu"
    torch_device = torch.device("cpu")  # PopTorch itself moves the inputs of its models
    collective_backend = "gloo"
    exchanges_gradients = True
    clips_by_default = False
    scores_in_training = False
    refused: Mapping[str, str] = {
        "dry_run": "use another `device`",
        "eval_knn_every": "score the checkpoints with eval_knn.py",
        "recompute": "spread the blocks over more IPUs with `pipeline`",
    }

    def __init__(
        self, precision: str, config: IpuConfig | None = None, *, synthetic: bool = False
    ) -> None:
        """Import the wrapper.

        Args:
            precision: float32, float16 or masterweight.
            config: How to compile the step; an evaluation passes none.
            synthetic: Whether the device generates its inputs and ignores those of the host.

        Raises:
            DeviceError: PopTorch is not installed or not usable.
            OptionError: `ema_so` cannot be loaded.
        """
        self.precision, self.config, self.synthetic = precision, config or IpuConfig(), synthetic
        self.poptorch = import_wrapper()
        self.popdist = _find_poprun()
        if self.popdist is not None:
            self.config = replace(self.config, replica=self.popdist.getNumLocalReplicas())
        self.updates_per_step = self.config.di
        if self.config.ema_so:
            _load_op(self.config.ema_so)

    @property
    def number_type(self) -> torch.dtype:
        """The type of activations."""
        return torch.float32 if self.precision == "float32" else torch.float16

    @property
    def loss_scale(self) -> float:
        """Factor on the loss; it cancels out and keeps small half-precision gradients above 0."""
        return self.config.loss_scale or (1.0 if self.precision == "float32" else LOSS_SCALE)

    def describe(self) -> str:
        """See the base class."""
        chips = len(self.config.pipeline or (0,))
        return f"ipu, {self.precision}, {self.config.replica} x {chips} IPU{'s' * (chips > 1)}"

    def to_device(self, batch: Any) -> Any:
        """See the base class; PopTorch takes host tensors."""
        return batch

    def autocast(self) -> AbstractContextManager[object]:
        """See the base class; the number format is part of the compiled step."""
        return contextlib.nullcontext()

    def count_micro_batches(self, accumulate_steps: int) -> int:
        """See the base class; accumulated micro-batches times copies times updates per call."""
        return self.accumulated(accumulate_steps) * self.config.replica * self.config.di

    def accumulated(self, accumulate_steps: int) -> int:
        """Return the micro-batches that a copy accumulates before an update.

        Raises:
            OptionError: `ga` and `accumulate_steps` contradict each other.
        """
        ga = self.config.ga or accumulate_steps
        if accumulate_steps not in (1, ga):
            raise OptionError(
                f"`ga` {ga} and `accumulate_steps` {accumulate_steps} contradict each other",
                value=ga,
                remedy="give one of them",
            )
        return ga

    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """See the base class; compiled at the first call.

        Raises:
            OptionError: The layout does not fit the backbone, the accumulation or the processes.
        """
        if not isinstance(program, TracedProgram):
            raise OptionError(
                "eval_linear.py is not supported on `device` ipu", remedy="use another `device`"
            )
        if not hasattr(optimizer, "betas"):
            raise OptionError(
                "`device` ipu supports only `optimizer` adamw",
                remedy="leave `optimizer` out, or use another `device`",
            )
        self._check_processes()
        clipping = "not clipped; `clip_grad` would clip them"
        if program.clip_grad:
            clipping = f"`clip_grad` {program.clip_grad:g}"
        logger.info(
            "gradients: %s, by the norm of all together: this device has no other", clipping
        )
        return IpuStep(self, program, optimizer, micro_batches)  # type: ignore[arg-type]  # checked

    def compile_eval(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """See the base class."""
        replace_gelu(module, widened=False)
        executor = self.poptorch.inferenceModel(module.eval(), self.poptorch.Options())

        def infer(images: Tensor) -> Tensor:
            with explain_errors(self.poptorch, "compute features"):
                features: Tensor = executor(images)
                return features

        return infer

    def compile_module(self, module: nn.Module, *, in_parts: bool = False) -> nn.Module:
        """See the base class.

        Raises:
            OptionError: The whole step is compiled anyway.
        """
        raise OptionError(
            "`compile` is for other devices: `device` ipu compiles the whole step",
            remedy="leave it out",
        )

    def synchronize_batch_norm(self, module: nn.Module) -> nn.Module:
        """See the base class.

        Raises:
            OptionError: The module contains batch norm.
        """
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
            raise OptionError(
                "batch norm over processes is not supported on `device` ipu",
                remedy="leave `use_bn_in_head` out",
            )
        return module

    def to_host(self, state: Any) -> Any:
        """See the base class; half-precision weights become float32, which every device reads."""
        host = super().to_host(state)
        return host.float() if isinstance(host, Tensor) and host.dtype == torch.float16 else host

    def synchronize(self) -> None:
        """See the base class; calls are synchronous."""

    def memory_peak(self) -> int | None:
        """See the base class."""
        return None

    def build_options(self, *, accumulated: int, chips: int, seed: int) -> Any:
        """Build the options of a training model, as in the published `train_options`."""
        poptorch, config = self.poptorch, self.config
        if self.popdist is not None:
            module = importlib.import_module("popdist.poptorch")
            options = module.Options(ipus_per_replica=config.ipu_per_replica)
        else:
            options = poptorch.Options().replicationFactor(config.replica)
        options.deviceIterations(config.di)
        options.autoRoundNumIPUs(True)
        options.randomSeed(seed)
        options.outputMode(
            poptorch.OutputMode.All if config.output_mode == "all" else poptorch.OutputMode.Final
        )
        options.enableExecutableCaching(config.executable_cache_dir)
        options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.SameAsIpu))
        options.setAvailableMemoryProportion({f"IPU{chip}": MEMORY_SHARE for chip in range(chips)})
        options.Training.gradientAccumulation(accumulated)
        options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
        options.Precision.enableFloatingPointExceptions(True)
        if self.precision != "float32":
            options.Precision.enableStochasticRounding(True)
        if self.precision == "float16":
            options.Precision.setPartialsType(torch.half)
        if self.synthetic:
            options.enableSyntheticData(True)
        if config.rts:
            sharded = poptorch.TensorLocationSettings().useReplicatedTensorSharding(True)
            options.TensorLocations.setOptimizerLocation(
                sharded.minElementsForReplicatedTensorSharding(chips)
            )
        return options

    def _check_processes(self) -> None:
        processes = dist.get_world_size() if dist.is_initialized() else 1
        started = self.popdist.getNumInstances() if self.popdist is not None else 1
        if processes != started:
            raise OptionError(
                f"poprun started {started} of {processes} processes: "
                "gradients would not be averaged over all of them",
                remedy="start several processes with poprun (training_scripts/ has examples)",
            )


def import_wrapper() -> Any:
    """Import PopTorch; this is the only place that does.

    Raises:
        DeviceError: PopTorch is not installed, or does not find its SDK.
    """
    if importlib.util.find_spec(WRAPPER) is None:
        raise DeviceError(
            "`device` ipu needs PopTorch of the Poplar SDK, which is not installed",
            remedy="use `device` cpu",
        )
    try:
        return importlib.import_module(WRAPPER)
    except (ImportError, AssertionError) as error:
        raise DeviceError(
            f"PopTorch is installed but cannot be imported ({error})",
            remedy="enable the Poplar SDK",
        ) from error


def _find_poprun() -> Any:
    """Return `popdist` if poprun started this process, else None."""
    if importlib.util.find_spec("popdist") is None:
        return None
    popdist = importlib.import_module("popdist")
    if not popdist.isPopdistEnvSet():
        return None
    popdist.init()
    return popdist


def _load_op(path: str) -> None:
    """Load the shared object; the device's compiler finds the op in it by name.

    Raises:
        OptionError: The file does not exist or cannot be loaded.
    """
    try:
        ctypes.cdll.LoadLibrary(str(Path(path).resolve(strict=True)))
    except OSError as error:
        raise OptionError(
            f"`ema_so` {path} cannot be loaded ({error})",
            value=path,
            remedy="leave it out, it is not needed",
        ) from error
