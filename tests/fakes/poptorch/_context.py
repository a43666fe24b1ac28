"""What is being executed right now, and how misuse is reported."""

from __future__ import annotations

import torch


class Error(Exception):
    """Anything the backend or the wrapper refuses."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message, self.type, self.location = message, "poptorch_py_error", ""


class RecoverableError(Error):
    """An error after which a reset helps."""

    recovery_action = ""


class UnrecoverableError(Error):
    """An error after which nothing helps."""


def createPoptorchError(msg):
    """The exception for misuse found on the Python side."""
    return Error(f"'poptorch_py_error': {msg}")


class Context:
    """One micro-batch on the device: where ops are placed, the marked loss, the deferred ops."""

    def __init__(self, names: dict[int, str], *, strict_blocks: bool) -> None:
        self.names, self.strict_blocks = names, strict_blocks
        self.active: int | None = 0  # ops before any annotation run on IPU 0
        self.visits: list[tuple[str, int]] = []
        self.placed: dict[str, int] = {}  # first IPU of each parameter and buffer
        self.switches = 0
        self.last_used = 0
        self.losses: list[torch.Tensor] = []
        self.deferred: list[tuple[list[torch.Tensor], object]] = []

    def begin(self, user_id: object, ipu_id: int | None) -> None:
        """A block begins."""
        if ipu_id is None:
            if self.strict_blocks:
                raise AssertionError(
                    "poptorch.AutoStage.SameAsIpu was selected but no IPU was specified"
                )
            ipu_id = self.last_used
        self.visits.append((str(user_id), ipu_id))
        self.switches += ipu_id != self.last_used
        self.active = self.last_used = ipu_id

    def end(self) -> None:
        """A `with Block` ends, and no block is active until the next one."""
        self.active = None


running: Context | None = None


def isRunningOnIpu():
    """Whether a forward pass is being traced or executed."""
    return running is not None
