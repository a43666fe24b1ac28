"""Optimisers: torch's, whose groups reach the device by setOptimizer only, and whose state lives
there."""

from __future__ import annotations

import inspect

import torch

from ._context import Error


class VariableAttributes:
    """Which attributes may change after compilation: those that were given."""

    def __init__(self, variable_attributes, allowed_attributes):
        self._variable, self._allowed = list(variable_attributes), list(allowed_attributes)

    def isConstant(self, attr):
        return attr not in self._variable

    def markAsConstant(self, attr):
        self._variable.remove(attr)

    def markAsVariable(self, attr):
        self._variable.append(attr)


class Optimizer:
    """The part that the device adds: `ipu_state` and `ipu_param`."""

    _executor = None
    _loaded = None

    def state_dict(self):
        own = super().state_dict()
        own["state"] = {}
        found = (
            self._executor._read_optimizer_state() if self._executor is not None else self._loaded
        )
        return {**own, **(found or {"ipu_state": None, "ipu_param": None})}

    def load_state_dict(self, state):
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        if state.get("ipu_state") is None or state.get("ipu_param") is None:
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        if not state["ipu_state"] or not state["ipu_param"]:
            raise RuntimeError("Cannot load optimizer state: it is empty.")
        self._loaded = {key: dict(state[key]) for key in ("ipu_state", "ipu_param")}

    def has_state(self):
        return self._loaded is not None


def _given(arguments, names):
    return {name: arguments[name] for name in names if arguments[name] is not None}


class AdamW(Optimizer, torch.optim.AdamW):
    """AdamW; accumulators and moments are float32 on the device."""

    _group_vars = ["lr", "betas", "weight_decay", "eps", "amsgrad"]

    def __init__(
        self,
        params,
        lr=None,
        betas=None,
        eps=None,
        weight_decay=None,
        amsgrad=None,
        maximize=None,
        foreach=None,
        capturable=None,
        differentiable=None,
        fused=None,
        loss_scaling=None,
        bias_correction=None,
        accum_type=None,
        first_order_momentum_accum_type=None,
        second_order_momentum_accum_type=None,
        max_grad_norm=None,
    ):
        arguments = locals()
        if amsgrad:
            raise ValueError("Only non-amsgrad AdamW optimizers are supported.")
        given = _given(arguments, self._group_vars)
        torch.optim.AdamW.__init__(self, params, **given)
        self.variable_attrs = VariableAttributes(
            [*given, *_given(arguments, ["loss_scaling"])], self._group_vars
        )
        self.loss_scaling = 1.0 if loss_scaling is None else float(loss_scaling)
        self.max_grad_norm = float("inf") if max_grad_norm is None else float(max_grad_norm)


class SGD(Optimizer, torch.optim.SGD):
    """Gradient descent, the default optimiser of a training model."""

    _group_vars = ["lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling"]

    def __init__(
        self,
        params,
        lr,
        momentum=None,
        dampening=None,
        weight_decay=None,
        nesterov=None,
        maximize=None,
        foreach=None,
        differentiable=None,
        loss_scaling=None,
        velocity_scaling=None,
        use_combined_accum=None,
        accum_type=None,
        velocity_accum_type=None,
        max_grad_norm=None,
    ):
        arguments = locals()
        given = _given(arguments, self._group_vars)
        torch.optim.SGD.__init__(self, params, **given)
        self.variable_attrs = VariableAttributes(
            [*given, *_given(arguments, ["loss_scaling"])], self._group_vars
        )
        self.loss_scaling = 1.0 if loss_scaling is None else float(loss_scaling)
        self.max_grad_norm = float("inf") if max_grad_norm is None else float(max_grad_norm)


class DeviceOptimizer:
    """What the device holds of an optimiser: torch's rule over its own copies of the parameters."""

    def __init__(self, optimizer, names, tensors):
        """`names`: of the host's parameters by id; `tensors`: the device's by name."""
        kinds = {AdamW: torch.optim.AdamW, SGD: torch.optim.SGD}
        self.kind = next((kind for kind in kinds if isinstance(optimizer, kind)), None)
        if self.kind is None:
            raise AssertionError(f"Unsupported optimizer type {type(optimizer).__name__}")
        self.names = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        wanted = inspect.signature(kinds[self.kind].__init__).parameters
        groups = [
            {
                **{key: value for key, value in group.items() if key in wanted},
                "params": [tensors[n] for n in part],
            }
            for group, part in zip(optimizer.param_groups, self.names, strict=True)
        ]
        self.rule = kinds[self.kind](groups, lr=0.0)
        self.loss_scaling, self.max_grad_norm = optimizer.loss_scaling, optimizer.max_grad_norm
        if optimizer._loaded is not None:
            self.write(optimizer._loaded["ipu_state"], tensors)

    def update(self, optimizer):
        """Take new values of variable attributes; refuse new values of constants."""
        if optimizer.max_grad_norm != self.max_grad_norm or not isinstance(optimizer, self.kind):
            raise Error("New optimizer is not a valid replacement.")
        self.loss_scaling = optimizer.loss_scaling
        for mine, theirs in zip(self.rule.param_groups, optimizer.param_groups, strict=True):
            for attribute in optimizer._group_vars:
                if attribute not in theirs or mine.get(attribute) == theirs[attribute]:
                    continue
                if optimizer.variable_attrs.isConstant(attribute):
                    raise Error(f"{attribute}: Values are constant but do not match.")
                mine[attribute] = theirs[attribute]

    def step(self):
        """Un-scale has happened; clip by the global norm, then torch's rule."""
        if self.max_grad_norm != float("inf"):
            parameters = [
                p for group in self.rule.param_groups for p in group["params"] if p.grad is not None
            ]
            norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters]))
            for parameter in parameters:
                parameter.grad *= self.max_grad_norm / max(float(norm), self.max_grad_norm)
        halves = [
            p for group in self.rule.param_groups for p in group["params"] if p.dtype == torch.half
        ]
        self._step_half(halves) if halves else self.rule.step()

    def _step_half(self, halves):
        """Moments are float32 whatever the weights are, so the rule runs on float32 twins."""
        twins = {}
        for group in self.rule.param_groups:
            for place, parameter in enumerate(group["params"]):
                twin = parameter.detach().float()
                twin.grad = None if parameter.grad is None else parameter.grad.float()
                if parameter in self.rule.state:
                    self.rule.state[twin] = self.rule.state.pop(parameter)
                twins[twin], group["params"][place] = parameter, twin
        self.rule.step()
        for group in self.rule.param_groups:
            for place, twin in enumerate(group["params"]):
                parameter = twins[twin]
                parameter.data.copy_(twin)
                if twin in self.rule.state:
                    self.rule.state[parameter] = self.rule.state.pop(twin)
                group["params"][place] = parameter

    PREFIXES = {
        "exp_avg": "Accl1___",
        "exp_avg_sq": "Accl2___",
        "step": "Step___",
        "momentum_buffer": "Accl___",
    }

    def read(self):
        """The state by the device's names."""
        state, param = {}, {"lossScaling_FLOAT": torch.tensor(self.loss_scaling)}
        for group, names in zip(self.rule.param_groups, self.names, strict=True):
            for parameter, name in zip(group["params"], names, strict=True):
                own = self.rule.state.get(parameter, {})
                found = {
                    f"{prefix}{name}": own[key]
                    for key, prefix in self.PREFIXES.items()
                    if key in own
                }
                state.update(
                    {key: value.clone() for key, value in found.items() if value is not None}
                )
                param[f"learningRate___specific___{name}"] = torch.tensor(float(group["lr"]))
                param[f"weightDecay___specific___{name}"] = torch.tensor(
                    float(group["weight_decay"])
                )
        return {"ipu_state": state, "ipu_param": param}

    def write(self, state, tensors):
        """Continue from a state read before."""
        known = {
            f"{prefix}{name}"
            for prefix in self.PREFIXES.values()
            for part in self.names
            for name in part
        }
        unknown = set(state) - known
        if unknown:
            raise Error(f"The optimizer state holds the unknown tensors {sorted(unknown)}")
        for part in self.names:
            for name in part:
                found = {
                    k: state[f"{p}{name}"].clone()
                    for k, p in self.PREFIXES.items()
                    if f"{p}{name}" in state
                }
                if found:
                    self.rule.state[tensors[name]] = found
