"""AdamW, SGD and LARS that keep all changing numbers in tensors.

On a lazy or compiled device, a Python number that changes causes a new graph, and torch's own
optimizers turn a tensor learning rate back into a number. Freezing the last layer and skipping a
non-finite step are masks: a masked tensor keeps its value, its moments and its step count.
Parameters are float32 tensors of any shape; scalars are () float32.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dino.errors import OptionError
from dino.stored_optimizer import copy_moments

LAST_LAYER = "last_layer"  # parameters with this in their name are frozen at first
BETAS = (0.9, 0.999)  # torch's AdamW defaults, which the original uses
EPS = 1e-8
MOMENTUM = 0.9  # SGD and LARS, as in the original
LARS_TRUST = 0.001  # eta of the original's LARS

Tensors = list[Tensor] | tuple[Tensor, ...]  # the type of torch's operators on lists


class UpdateInputs(NamedTuple):
    """Inputs of one update, all () float32 on the device.

    Attributes:
        learning_rate: Learning rate of this iteration, already scaled with the global batch.
        weight_decay: Weight decay of the decayed group; the other group has none.
        keep: 1 to update, 0 to leave everything unchanged (a non-finite step).
        keep_last_layer: The same for the last layer; also 0 while it is frozen.
    """

    learning_rate: Tensor
    weight_decay: Tensor
    keep: Tensor
    keep_last_layer: Tensor


@dataclass
class Bucket:
    """Parameters that share decay, mask and step count."""

    parameters: list[Tensor]
    decayed: bool
    last_layer: bool


def group_parameters(model: nn.Module) -> list[dict[str, Any]]:
    """Return the original's two groups: decayed parameters, then biases and vectors (not decayed).

    Only trainable parameters count. `last_layer` lists the indices, within the group, of the
    parameters that are frozen at first.
    """
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = plain if name.endswith(".bias") or parameter.ndim == 1 else decayed
            group.append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in group],
            "last_layer": [index for index, (name, _) in enumerate(group) if LAST_LAYER in name],
            "decayed": group is decayed,
        }
        for group in (decayed, plain)
    ]


class MaskedOptimizer(torch.optim.Optimizer):
    """Base of the three update rules: groups, masks and the layout of the state."""

    state_names: tuple[str, ...] = ()
    # torch wraps these to keep its compiler away, and imports it for that: a second of each start.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    _load_groups = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """Create zero state for all parameters in `groups`, so that shapes never change."""
        super().__init__(groups, defaults={"lr": 0.0, "weight_decay": 0.0})
        self.buckets = [bucket for group in self.param_groups for bucket in _split(group)]
        self._complete_state()

    def step(self, inputs: UpdateInputs) -> None:  # type: ignore[override]  # torch has a closure
        """Update every parameter in place from its `.grad`, which must be finite, masked or not."""
        with torch.no_grad():
            no_decay = torch.zeros_like(inputs.weight_decay)
            for bucket in self.buckets:
                keep = inputs.keep_last_layer if bucket.last_layer else inputs.keep
                rate = inputs.learning_rate * keep
                decay = (inputs.weight_decay if bucket.decayed else no_decay) * keep
                self.update_bucket(bucket.parameters, rate, decay, keep)

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """Apply the rule; `rate`, `decay` and `keep` are (), and 0 if nothing may change."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load our own state, or that of torch's optimizer of the same name, as in the original.

        Raises:
            CheckpointError: A moment or a group does not fit the parameters.
        """
        moments = copy_moments(state_dict, self, self.state_names, "the checkpoint")
        groups = [
            {**saved, **{key: group[key] for key in ("last_layer", "decayed")}}
            for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True)
        ]
        self._load_groups({"state": {}, "param_groups": groups})
        self.state.update(moments)
        self._complete_state()

    def _complete_state(self) -> None:
        for bucket in self.buckets:
            first = bucket.parameters[0]
            step = self.state[first].get("step", torch.zeros(()))
            shared = torch.as_tensor(step, dtype=torch.float32).to(first.device, copy=True)
            for parameter in bucket.parameters:
                state = self.state[parameter]
                for name in self.state_names:
                    state.setdefault(name, torch.zeros_like(parameter))
                state["step"] = shared  # one per bucket: its parameters are updated together

    def _moments(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        return [self.state[parameter][name] for parameter in parameters]


# Otherwise torch wraps it in hooks and profiler records, which no compiled step can contain.
MaskedOptimizer.step.hooked = True  # type: ignore[attr-defined]  # a mark that torch reads


class AdamW(MaskedOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019).

    Equal to torch.optim.AdamW in fp32.
    """

    state_names = ("exp_avg", "exp_avg_sq")
    betas = BETAS
    eps = EPS

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """See the base class."""
        gradients = _gradients(parameters)
        first = self._moments(parameters, "exp_avg")
        second = self._moments(parameters, "exp_avg_sq")
        step = self.state[parameters[0]]["step"].add_(keep)
        torch._foreach_mul_(parameters, 1 - rate * decay)
        _update_average(first, gradients, keep * (1 - BETAS[0]))
        _update_average(second, torch._foreach_mul(gradients, gradients), keep * (1 - BETAS[1]))
        divisor = torch._foreach_sqrt(second)
        torch._foreach_div_(divisor, _bias_correction(BETAS[1], step).sqrt())
        torch._foreach_add_(divisor, self.eps)
        change = torch._foreach_div(first, divisor)
        torch._foreach_mul_(change, -rate / _bias_correction(BETAS[0], step))
        torch._foreach_add_(parameters, change)


class FusedAdamW(AdamW):
    """AdamW with torch's fused kernel, which does all but the decay in one pass over memory."""

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """See the base class; the kernel needs its decay as a Python number, so it gets 0."""
        step = self.state[parameters[0]]["step"].add_(keep)
        torch._foreach_mul_(parameters, 1 - rate * decay)
        torch._fused_adamw_(
            parameters,
            _gradients(parameters),
            self._moments(parameters, "exp_avg"),
            self._moments(parameters, "exp_avg_sq"),
            [],
            [step] * len(parameters),
            lr=rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=1 - keep,  # if 1, the kernel changes nothing
        )


class SGD(MaskedOptimizer):
    """Gradient descent with momentum 0.9, equal to torch.optim.SGD."""

    state_names = ("momentum_buffer",)

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """See the base class."""
        decayed = torch._foreach_mul(parameters, decay)
        change = torch._foreach_add(_gradients(parameters), decayed)
        buffers = self._moments(parameters, "momentum_buffer")
        _apply_momentum(parameters, buffers, change, rate, keep)


class LARS(MaskedOptimizer):
    """Layer-wise adaptive rates (You et al., 2017).

    A matrix moves by a fixed share of its norm; vectors are updated as in SGD.
    """

    state_names = ("mu",)

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """See the base class; as in the original, vectors are neither decayed nor adapted."""
        change = [
            gradient if parameter.ndim == 1 else _adapt(parameter, gradient + decay * parameter)
            for parameter, gradient in zip(parameters, _gradients(parameters), strict=True)
        ]
        _apply_momentum(parameters, self._moments(parameters, "mu"), change, rate, keep)


OPTIMIZERS: dict[str, type[MaskedOptimizer]] = {"adamw": AdamW, "sgd": SGD, "lars": LARS}


def build_optimizer(
    name: str, model: nn.Module, *, fused: bool = False, eps: float = EPS
) -> MaskedOptimizer:
    """Build an optimizer over a model's trainable parameters.

    Args:
        name: A key of OPTIMIZERS.
        model: The model, on its device.
        fused: Whether that device has torch's fused AdamW kernel.
        eps: Epsilon of AdamW.

    Raises:
        OptionError: There is no such optimizer.
    """
    if name not in OPTIMIZERS:
        choices = ", ".join(OPTIMIZERS)
        raise OptionError(f"`optimizer` must be one of {choices} (got {name})", value=name)
    optimizer_class = FusedAdamW if name == "adamw" and fused else OPTIMIZERS[name]
    optimizer = optimizer_class(group_parameters(model))
    if isinstance(optimizer, AdamW):
        optimizer.eps = eps
    return optimizer


def _split(group: dict[str, Any]) -> list[Bucket]:
    last = set(group["last_layer"])
    buckets = []
    for is_last in (False, True):
        half = [p for index, p in enumerate(group["params"]) if (index in last) == is_last]
        if half:
            buckets.append(Bucket(half, group["decayed"], is_last))
    return buckets


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    """Return the gradients; a missing one counts as 0."""
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]


def _update_average(averages: list[Tensor], values: Tensors, weight: Tensor) -> None:
    """Averages += weight (values - averages); a weight of 0 changes nothing, to the bit."""
    torch._foreach_mul_(averages, 1 - weight)
    torch._foreach_add_(averages, torch._foreach_mul(values, weight))


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """Return 1 - beta ** step without cancellation in fp32; step 0 (no update yet) counts as 1."""
    return -torch.expm1(step.clamp(min=1.0) * math.log(beta))


def _apply_momentum(
    parameters: list[Tensor], buffers: list[Tensor], change: Tensors, rate: Tensor, keep: Tensor
) -> None:
    torch._foreach_mul_(buffers, 1 - keep * (1 - MOMENTUM))
    torch._foreach_add_(buffers, torch._foreach_mul(change, keep))
    torch._foreach_add_(parameters, torch._foreach_mul(buffers, -rate))


def _adapt(parameter: Tensor, change: Tensor) -> Tensor:
    """Scale `change` to LARS_TRUST times the parameter's norm; keep it if either norm is 0."""
    norm, change_norm = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(change)
    ratio = LARS_TRUST * norm / change_norm.clamp(min=1e-30)
    return change * torch.where((norm > 0) & (change_norm > 0), ratio, 1.0)
