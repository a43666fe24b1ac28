"""AdamW, SGD and LARS whose every changing number is a tensor, and clipping without a host read.

On a lazy or compiled device a changed Python number is a new graph, and torch's own optimizers turn a tensor learning
rate back into a number. Freezing the last layer and skipping a non-finite step are masks: a masked tensor keeps its
value, its moments and its step count. Parameters are () or larger float32 tensors; scalars are () float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dino.errors import OptionError

LAST_LAYER = "last_layer"  # parameters with this in their name wait for the end of freezing
BETAS = (0.9, 0.999)  # torch's AdamW defaults, which the original uses
EPS = 1e-8
MOMENTUM = 0.9  # SGD and LARS, as in the original
LARS_TRUST = 0.001  # eta of the original's LARS

Tensors = list[Tensor] | tuple[Tensor, ...]  # what torch's operators on lists take and give


class UpdateInputs(NamedTuple):
    """What one update depends on, all () float32 on the device.

    Attributes:
        learning_rate: Peak-scaled learning rate of this iteration.
        weight_decay: Of the decayed group; the other group has none.
        keep: 1 to update, 0 to leave everything as it is (a non-finite step).
        keep_last_layer: The same for the last layer; 0 also while it is frozen.
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
    """The original's two groups: everything, then biases and vectors, which are not decayed.

    Only trainable parameters count; `last_layer` holds the positions, within the group, of those frozen at first.
    """
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(
                (name, parameter)
            )
    return [
        {
            "params": [parameter for _, parameter in group],
            "last_layer": [place for place, (name, _) in enumerate(group) if LAST_LAYER in name],
            "decayed": group is decayed,
        }
        for group in (decayed, plain)
    ]


class MaskedOptimizer(torch.optim.Optimizer):
    """What the three update rules share: groups, masks and the state's form."""

    state_names: tuple[str, ...] = ()

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """Make zero state for every parameter of `group_parameters`, so that shapes never change later."""
        super().__init__(groups, defaults={"lr": 0.0, "weight_decay": 0.0})
        self.buckets = [bucket for group in self.param_groups for bucket in _split(group)]
        self._complete_state()

    def step(self, inputs: UpdateInputs) -> None:  # type: ignore[override]  # torch's step takes a closure
        """Update every parameter in place from its `.grad`, which may hold anything where it is masked."""
        with torch.no_grad():
            for bucket in self.buckets:
                keep = inputs.keep_last_layer if bucket.last_layer else inputs.keep
                decay = (
                    inputs.weight_decay if bucket.decayed else torch.zeros_like(inputs.weight_decay)
                )
                self.update_bucket(
                    bucket.parameters, inputs.learning_rate * keep, decay * keep, keep
                )

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """Apply the rule; `rate`, `decay` and `keep` are () and 0 where nothing may change."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read our own state or that of torch's optimizer of the same name, which the original saves."""
        groups = [
            {**saved, **{key: group[key] for key in ("last_layer", "decayed")}}
            for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True)
        ]
        super().load_state_dict({**state_dict, "param_groups": groups})
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
                state["step"] = (
                    shared  # one tensor a bucket: its parameters are always updated together
                )

    def _moments(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        return [self.state[parameter][name] for parameter in parameters]


class AdamW(MaskedOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), equal to torch.optim.AdamW in fp32."""

    state_names = ("exp_avg", "exp_avg_sq")
    betas = BETAS
    eps = EPS

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """See the base class."""
        gradients = _gradients(parameters, keep)
        first, second = (
            self._moments(parameters, "exp_avg"),
            self._moments(parameters, "exp_avg_sq"),
        )
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
    """The same by torch's kernel, which does all but the decay in one pass over memory, for devices that have it."""

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """See the base class; the kernel wants a decay that is a Python number, so it is given none."""
        step = self.state[parameters[0]]["step"].add_(keep)
        torch._foreach_mul_(parameters, 1 - rate * decay)
        torch._fused_adamw_(
            parameters,
            [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters],
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
            found_inf=1 - keep,  # at 1 the kernel leaves everything as it is
        )


class SGD(MaskedOptimizer):
    """Gradient descent with momentum 0.9, equal to torch.optim.SGD."""

    state_names = ("momentum_buffer",)

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """See the base class."""
        change = torch._foreach_add(
            _gradients(parameters, keep), torch._foreach_mul(parameters, decay)
        )
        _apply_momentum(
            parameters, self._moments(parameters, "momentum_buffer"), change, rate, keep
        )


class LARS(MaskedOptimizer):
    """Layer-wise adaptive rates (You et al., 2017): matrices move by a fixed share of their norm, vectors as in SGD."""

    state_names = ("mu",)

    def update_bucket(
        self, parameters: list[Tensor], rate: Tensor, decay: Tensor, keep: Tensor
    ) -> None:
        """See the base class; parameters with one dimension are neither decayed nor adapted, as in the original."""
        change = [
            gradient if parameter.ndim == 1 else _adapt(parameter, gradient + decay * parameter)
            for parameter, gradient in zip(parameters, _gradients(parameters, keep), strict=True)
        ]
        _apply_momentum(parameters, self._moments(parameters, "mu"), change, rate, keep)


OPTIMIZERS: dict[str, type[MaskedOptimizer]] = {"adamw": AdamW, "sgd": SGD, "lars": LARS}


def build_optimizer(
    name: str, model: nn.Module, *, fused: bool = False, eps: float = EPS
) -> MaskedOptimizer:
    """Build an optimizer over a model's trainable parameters.

    Args:
        name: One of OPTIMIZERS.
        model: On its device.
        fused: Whether that device has torch's fused kernel for AdamW.
        eps: AdamW's.

    Raises:
        OptionError: No such optimizer.
    """
    if name not in OPTIMIZERS:
        raise OptionError(
            f"`optimizer` {name} is unknown: known are {', '.join(OPTIMIZERS)}", value=name
        )
    kind = FusedAdamW if name == "adamw" and fused else OPTIMIZERS[name]
    optimizer = kind(group_parameters(model))
    if isinstance(optimizer, AdamW):
        optimizer.eps = eps
    return optimizer


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, *, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """Limit the norm of each gradient tensor on its own (clip_gradients in the original's utils.py), in place.

    Args:
        parameters: Those with a gradient are clipped.
        max_norm: Largest norm of one tensor; 0 leaves the gradients as they are.
        fused: Whether the device takes the norms of a list of tensors at once.

    Returns:
        () norm of all gradients together before clipping, and () 1.0 if it is finite, else 0.0.
    """
    with torch.no_grad():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = torch.stack(
            torch._foreach_norm(gradients)
            if fused
            else [torch.linalg.vector_norm(g) for g in gradients]
        )
        total = torch.linalg.vector_norm(norms)
        if max_norm > 0:
            torch._foreach_mul_(
                gradients, list((max_norm / (norms + 1e-6)).clamp(max=1.0).unbind())
            )
        return total, torch.isfinite(total).float()


def _split(group: dict[str, Any]) -> list[Bucket]:
    last = set(group["last_layer"])
    halves = (
        ([p for place, p in enumerate(group["params"]) if (place in last) == is_last], is_last)
        for is_last in (False, True)
    )
    return [Bucket(half, group["decayed"], is_last) for half, is_last in halves if half]


def _gradients(parameters: list[Tensor], keep: Tensor) -> list[Tensor]:
    """Gradients, all 0 where they are masked, so that the update multiplies 0 by 0 and not by NaN."""
    return [
        torch.zeros_like(p) if p.grad is None else p.grad.masked_fill_(keep == 0, 0.0)
        for p in parameters
    ]


def _update_average(averages: list[Tensor], values: Tensors, weight: Tensor) -> None:
    """Averages += weight (values - averages), exactly nothing at weight 0."""
    torch._foreach_mul_(averages, 1 - weight)
    torch._foreach_add_(averages, torch._foreach_mul(values, weight))


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta ** step without its cancellation in fp32; a step of 0 (nothing updated yet) counts as 1."""
    return -torch.expm1(step.clamp(min=1.0) * math.log(beta))


def _apply_momentum(
    parameters: list[Tensor], buffers: list[Tensor], change: Tensors, rate: Tensor, keep: Tensor
) -> None:
    torch._foreach_mul_(buffers, 1 - keep * (1 - MOMENTUM))
    torch._foreach_add_(buffers, torch._foreach_mul(change, keep))
    torch._foreach_add_(parameters, torch._foreach_mul(buffers, -rate))


def _adapt(parameter: Tensor, change: Tensor) -> Tensor:
    """Scale `change` to LARS_TRUST times the parameter's norm; leave it where either norm is 0."""
    own, its = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(change)
    return change * torch.where((own > 0) & (its > 0), LARS_TRUST * own / its.clamp(min=1e-30), 1.0)
