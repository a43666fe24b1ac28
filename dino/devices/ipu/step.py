"""The step that PopTorch compiles: inputs and outputs of a call, and the work between calls.

`device.py` imports PopTorch and builds its options.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dino.devices.base import TrainStep
from dino.devices.config import IpuConfig
from dino.devices.ipu.pipeline import place_blocks
from dino.devices.ipu.traced import (
    FIELDS,
    TracedProgram,
    TracedStep,
    ema_update,
    hold_as_buffers,
    name_tensors,
    narrow_tokens,
    replace_gelu,
)
from dino.errors import DeviceError, NonFiniteError, OptionError

# The op in the published shared object.
EMA_OP = {"name": "ExpMovAvg", "domain": "com.acme", "domain_version": 1}
# AdamW's state -> its prefix on the device.
STATE = {"exp_avg": "Accl1___", "exp_avg_sq": "Accl2___", "step": "Step___"}


@contextlib.contextmanager
def explain_errors(poptorch: Any, doing: str) -> Iterator[None]:
    """Turn PopTorch's errors into one-line errors.

    Raises:
        NonFiniteError: The device stopped at a non-finite number, as its options demand.
        DeviceError: Anything else: too few IPUs, too little memory, a graph that does not compile.
    """
    try:
        yield
    except poptorch.Error as error:
        if "floating point" in str(error).lower():
            raise NonFiniteError(
                f"the IPU stopped at a number that is not finite ({error})",
                remedy="the last checkpoint predates it. Try a lower `lr` or `loss_scale`, "
                "or `precision` float32",
            ) from error
        raise DeviceError(
            f"PopTorch could not {doing} ({error})",
            remedy="check `replica`, `pipeline`, `batch_size_per_device` and the free IPUs",
        ) from error


class Moments(Protocol):
    """The optimizer, as used by a device with its own AdamW: parameter groups and their state.

    Attributes:
        buckets: Groups of parameters with `parameters`, `decayed` and `last_layer`.
        state: By parameter: `exp_avg`, `exp_avg_sq` and `step`.
        betas: Decay rates of both moments.
        eps: Added to the root of the second moment.
    """

    buckets: Sequence[Any]
    state: Mapping[Any, dict[str, Tensor]]
    betas: tuple[float, float]
    eps: float


class CompilingDevice(Protocol):
    """The part of the device that the step uses."""

    poptorch: Any
    config: IpuConfig
    precision: str

    @property
    def number_type(self) -> torch.dtype:
        """The type of activations."""

    @property
    def loss_scale(self) -> float:
        """Factor on the loss."""

    def build_options(self, *, accumulated: int, chips: int, seed: int) -> Any:
        """Build the options of the model."""


class IpuStep(TrainStep):
    """A program with networks, optimizer and teacher on the device; the center is on the host.

    The teacher is updated once per update, after the student's weights. Without the published op,
    this happens at the start of the next update's first micro-batch, when the student already has
    its new weights: the same numbers in the same order. The update that is due at the end of a call
    is applied to the host's copy when it is read.
    """

    def __init__(
        self,
        device: CompilingDevice,
        program: TracedProgram,
        optimizer: Moments,
        micro_batches: int,
    ) -> None:
        """Check the layout; compile later, because networks and optimizer may still be loaded."""
        self.device, self.program = device, program
        self.optimizer, self.micro_batches = optimizer, micro_batches
        self.config, self.poptorch = device.config, device.poptorch
        self.accumulated = micro_batches // (self.config.replica * self.config.di)
        backbone, depth = program.student.get_submodule("backbone"), None
        if hasattr(backbone, "blocks"):
            depth = len([*backbone.get_submodule("blocks").children()])
        self.placement = place_blocks(self.config.pipeline, depth)
        names = [name for name, _ in program.student.named_parameters()]
        least = self.placement.stages(names)
        if self.config.pipeline is not None and self.accumulated < least:
            written = " ".join(map(str, self.config.pipeline))
            raise OptionError(
                f"`ga` must be >= {least}, the stages of `pipeline` {written} "
                f"(got {self.accumulated})",
                value=self.accumulated,
            )
        self.seed = torch.initial_seed()
        self.whole: TracedStep | None = None
        self.executor: Any = None
        self.rule: Any = None
        self.due = 1.0  # momentum of a teacher update that the device has not made yet
        self.trains_last_layer = 0.0

    def __call__(self, batch: Any, inputs: Any) -> None:
        """See the base class."""
        numbers = {name: float(getattr(inputs, name)) for name in FIELDS}
        if self.executor is not None and numbers["train_last_layer"] != self.trains_last_layer:
            self._release()
        self.trains_last_layer = numbers["train_last_layer"]
        whole = self.whole or self._build(batch)
        center = self.program.center.expand(self.micro_batches, -1).contiguous()
        with explain_errors(self.poptorch, "train a step"):
            if self.executor is None:
                self._compile(whole)
            self._set_rates(numbers)
            depth = () if inputs.depth is None else (inputs.depth,)
            loss, centers, statistics = self.executor(
                whole.fields(batch), self._rows(numbers), center, *depth
            )
        self.due = 1.0 if self.config.ema_so else numbers["momentum"]
        means = statistics.float().mean(dim=0).unbind()
        self._record((loss.float().mean(), centers.float().mean(dim=0, keepdim=True), *means))

    def _record(self, output: tuple[Tensor, ...]) -> None:
        """Record a call; it cannot be masked: the device has already clipped and updated."""
        mean = self.program.begin_average([output])()
        finite = torch.isfinite(mean.loss).float()
        self.program.record(
            mean, grad_norm=torch.full_like(finite, math.nan), keep=finite, finite=finite
        )

    def read_back(self) -> None:
        """See the base class."""
        if self.executor is None:
            return
        self._fetch()
        due = torch.tensor(self.due)
        teachers = name_tensors(self.program.teacher)
        with torch.no_grad():
            for name, student in self.program.student.named_parameters():
                ema_update(student, teachers[name], due)

    def _build(self, batch: Any) -> TracedStep:
        """Adapt the networks to the device and build the module to compile."""
        student, teacher = self.program.student, self.program.teacher
        for network in (student, teacher):
            if self.config.gelu_type == "erf":
                replace_gelu(network, widened=self.device.precision == "masterweight")
            if self.device.precision == "float16":
                network.half()
            elif self.device.precision == "masterweight":
                narrow_tokens(network, self.device.number_type)
            if self.config.pipeline is not None:
                for module, chip in self.placement.annotations(network):
                    self.poptorch.BeginBlock(module, user_id=f"ipu{chip}", ipu_id=chip)
        if not self.config.ema_so:
            hold_as_buffers(teacher)
        self.whole = TracedStep(
            self.program,
            self.placement,
            example=batch,
            number_type=self.device.number_type,
            mark_loss=lambda loss: self.poptorch.identity_loss(loss, reduction="mean"),
            begin_chip=self._begin_chip,
            move=self._move_by_op if self.config.ema_so else ema_update,
        )
        return self.whole

    def _begin_chip(self, chip: int) -> None:
        if self.config.pipeline is not None:
            self.poptorch.Block.start(f"ipu{chip}", chip)

    def _move_by_op(self, student: Tensor, teacher: Tensor, momentum: Tensor) -> None:
        self.poptorch.custom_op([student, teacher, momentum], example_outputs=[student], **EMA_OP)

    def _compile(self, whole: TracedStep) -> None:
        options = self.device.build_options(
            accumulated=self.accumulated, chips=self.placement.chips, seed=self.seed % 2**31
        )
        self.rule = self._build_rule()
        self.executor = self.poptorch.trainingModel(whole, options, self.rule)

    def _build_rule(self) -> Any:
        """Build the device's own AdamW with our moments.

        Values that may change must be passed here; otherwise PopTorch makes them constants.
        """
        scale = self.device.loss_scale
        limit = self.program.clip_grad
        groups = [
            {"params": b.parameters, "lr": 0.0, "weight_decay": 0.0} for b in self.optimizer.buckets
        ]
        rule = self.poptorch.optim.AdamW(
            groups,
            lr=0.0,
            betas=self.optimizer.betas,
            eps=self.optimizer.eps,
            weight_decay=0.0,
            loss_scaling=scale,
            **({"max_grad_norm": limit} if limit > 0 else {}),
        )
        named = self._named_state()
        if any(float(state["step"]) for _, state in named):
            moments = {
                f"{prefix}{name}": state[key]
                for name, state in named
                for key, prefix in STATE.items()
            }
            rates = {
                f"{rate}___specific___{name}": torch.tensor(0.0)
                for name, _ in named
                for rate in ("learningRate", "weightDecay")
            }
            numbers = {**rates, "lossScaling_FLOAT": torch.tensor(scale)}
            rule.load_state_dict({**rule.state_dict(), "ipu_state": moments, "ipu_param": numbers})
        return rule

    def _named_state(self) -> list[tuple[str, dict[str, Tensor]]]:
        """Return each parameter's name on the device and its state in our optimizer."""
        assert self.whole is not None
        names = {parameter: name for name, parameter in self.whole.named_parameters()}
        return [
            (names[p], self.optimizer.state[p])
            for bucket in self.optimizer.buckets
            for p in bucket.parameters
        ]

    def _fetch(self) -> None:
        """Copy weights and moments from the device; a frozen layer's moments become 0."""
        with explain_errors(self.poptorch, "read the weights back"):
            self.executor.copyWeightsToHost()
            moments = self.rule.state_dict()["ipu_state"]
        frozen = [b for b in self.optimizer.buckets if b.last_layer and not self.trains_last_layer]
        with torch.no_grad():
            for name, state in self._named_state():
                for key, prefix in STATE.items():
                    state[key].copy_(moments[f"{prefix}{name}"].reshape(state[key].shape))
            for parameter in (p for bucket in frozen for p in bucket.parameters):
                for key in STATE:
                    self.optimizer.state[parameter][key].zero_()

    def _release(self) -> None:
        """Drop the executor, so that the next call compiles again from the device's state.

        Moments can be set only when compiling, and an unfrozen layer starts with moments of 0.
        PopTorch caches compiled programs, so this takes seconds, once in a run.
        """
        self._fetch()  # weights too: a checkpoint may have updated the host's teacher already
        self.executor.destroy()
        self.executor = None

    def _set_rates(self, numbers: Mapping[str, float]) -> None:
        for bucket, group in zip(self.optimizer.buckets, self.rule.param_groups, strict=True):
            thawed = not bucket.last_layer or bool(self.trains_last_layer)
            group["lr"] = numbers["learning_rate"] * thawed
            group["weight_decay"] = numbers["weight_decay"] * thawed * bucket.decayed
        self.executor.setOptimizer(self.rule)

    def _rows(self, numbers: Mapping[str, float]) -> Tensor:
        """Return the micro-batches' inputs (N, 5); only an update's first moves the teacher."""
        row = torch.tensor([numbers[name] for name in FIELDS], dtype=torch.float32)
        rows = row.repeat(self.micro_batches, 1)
        if not self.config.ema_so:
            momentum = rows[:, FIELDS.index("momentum")].view(self.config.di, self.accumulated, -1)
            momentum[:, 1:] = 1.0
            momentum[0, 0] = self.due
        return rows
