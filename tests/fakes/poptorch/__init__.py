"""A stand-in for PopTorch 3.4 on the host: the names the product uses, with their signatures and
what they do.

It executes: batches are split by device iterations, accumulation and replication in the documented
order, the device's weights are copies of the host's, buffers are there once a replica. It does not
know time, memory, which operators the real compiler takes, stochastic rounding, or the device's
random numbers.
"""

from __future__ import annotations

from . import optim, options
from ._context import (
    Error,
    RecoverableError,
    UnrecoverableError,
    createPoptorchError,
    isRunningOnIpu,
)
from ._executor import PoplarExecutor
from .enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    MeanReductionStrategy,
    OutputMode,
    ReductionType,
    SyncPattern,
)
from .ops import BeginBlock, Block, custom_op, identity_loss, removeBlocks
from .options import Options, PipelinedExecution, ShardedExecution, TensorLocationSettings

__fake__ = True
__version__ = "3.4.0"
__all__ = [
    "AutoStage",
    "BeginBlock",
    "Block",
    "CommGroupType",
    "ConnectionType",
    "Error",
    "MeanReductionStrategy",
    "Options",
    "OutputMode",
    "PipelinedExecution",
    "PoplarExecutor",
    "RecoverableError",
    "ReductionType",
    "ShardedExecution",
    "SyncPattern",
    "TensorLocationSettings",
    "UnrecoverableError",
    "createPoptorchError",
    "custom_op",
    "identity_loss",
    "inferenceModel",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "isRunningOnIpu",
    "optim",
    "options",
    "removeBlocks",
    "trainingModel",
]


def trainingModel(model, options=None, optimizer=None):
    """Wrap a model for training."""
    if type(model).__name__.startswith("Poptorch"):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on the model to unwrap it"
        )
    return PoplarExecutor(model, options, True, __version__, optimizer=optimizer, user_model=model)


def inferenceModel(model, options=None):
    """Wrap a model for inference."""
    return PoplarExecutor(model, options, False, __version__)


def ipuHardwareIsAvailable(num_ipus=1):
    """There is no hardware."""
    return False


def ipuHardwareVersion():
    """There is no hardware."""
    raise AssertionError("No IPU hardware available on this system")
