"""A compiled model that really executes: batches are split, gradients accumulated, weights live on
the device."""

from __future__ import annotations

import contextlib
import copy
import inspect

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import _context, enums
from ._context import Context, Error, createPoptorchError
from .optim import SGD, DeviceOptimizer
from .options import Options, PipelinedExecution, ShardedExecution

MACHINE = {"ipus": 64, "in_use": 0}  # what a test may change
EMA_ORDER = {
    "order": "after"
}  # of deferred ops and the weight update: PopART leaves it open with accumulation
SHAPED_BY_VALUES = {"aten::nonzero", "aten::masked_select"}
ADVICE = "Create a new wrapper or call destroy() to recompile."


class _Tracing(TorchDispatchMode):
    """What the tracer sees while the graph is made: where each op is placed, and reads of the
    host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        context = _context.running
        name = func._schema.name
        if name == "aten::_local_scalar_dense":
            raise Error(
                "aten::item is only supported in eager mode, but was intercepted in static dispatch mode"
            )
        masks = (
            [i for i in args[1] if i is not None and i.dtype == torch.bool]
            if name == "aten::index"
            else []
        )
        if masks or name in SHAPED_BY_VALUES:
            raise createPoptorchError(
                f"{name}: the shape of the result depends on values, and a graph has fixed ones"
            )
        if context.active is None:
            raise createPoptorchError("No active Block, all the ops must belong to a Block")
        for value in _leaves((args, kwargs or {})):
            if isinstance(value, torch.Tensor) and id(value) in context.names:
                context.placed.setdefault(context.names[id(value)], context.active)
        return func(*args, **(kwargs or {}))


class _DeviceOps(TorchFunctionMode):
    """Ops that mean something else on the device: GELU is always its tanh form, half inputs cast
    float weights."""

    CASTING = (
        torch.nn.functional.linear,
        torch.nn.functional.conv2d,
        torch.nn.functional.layer_norm,
    )
    CASTING += (torch.conv2d,)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.nn.functional.gelu:
            kwargs["approximate"] = "tanh"
        if func in self.CASTING and args[0].dtype == torch.half:
            args, kwargs = (_map(_to_half, part) for part in (args, kwargs))
        return func(*args, **kwargs)


def _to_half(value):
    return value.half() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _host_type(name):
    """A wrapped module is an instance of a class of its own, whose accesses bring back the device's
    weights."""

    def synced(method):
        def call(self, *args, **kwargs):
            executor = self.__dict__.get("_executor")
            if executor is not None:
                executor.copyWeightsToHostIfNeeded()
            return getattr(super(type(self), self), method)(*args, **kwargs)

        return call

    return {
        method: synced(method)
        for method in ("state_dict", "parameters", "named_parameters", "buffers", "forward")
    }


class PoplarExecutor:
    """A model on the device."""

    def __init__(self, model, options, training, poptorch_version, optimizer=None, user_model=None):
        options = options or Options()
        if not isinstance(options, Options):
            raise createPoptorchError(f"Invalid type: 'options' is of type {type(options)}")
        options._freeze()
        self._options = options.clone()
        if self._options.defaultOutputMode():
            self._options.output_mode = int(
                enums.OutputMode.Final if training else enums.OutputMode.All
            )
        self._options._freeze()
        self._training, self._user_model, self._model = (
            training,
            user_model or model,
            copy.copy(model),
        )
        self._optimizer = self._new_optimizer = optimizer
        self._tensors, self._replica_buffers, self._device_optimizer = None, None, None
        self._attached, self._stale, self._inputs = False, False, None
        self._context: Context | None = None
        if training:
            if self._options.Training.accumulation_and_replication_reduction_type is None:
                raise createPoptorchError("no reduction")
            kind = type(self._user_model)
            methods = {**_host_type(kind.__name__), "destroy": lambda own: self.destroy()}
            self._user_model.__class__ = type(f"Poptorch{kind.__name__}", (kind,), methods)
            self._user_model.__dict__["_executor"] = self
            self._model.__dict__.pop("_executor", None)
        elif self._options.Training.gradient_accumulation != 1:
            raise createPoptorchError(
                "You must set the gradient accumulation to 1 for inference models"
            )

    # What the model is.
    @property
    def model(self):
        return self._user_model

    @property
    def options(self):
        return self._options

    def isCompiled(self):
        return self._tensors is not None

    def isAttachedToDevice(self):
        return self._attached

    # Weights.
    def _host_tensors(self):
        found = {name: tensor for name, tensor in torch.nn.Module.named_parameters(self._model)}
        return found, dict(torch.nn.Module.named_buffers(self._model))

    def _check_compiled(self):
        if not self.isCompiled():
            raise createPoptorchError("Model has not been compiled or has been destroyed.")

    def copyWeightsToHost(self):
        self._check_compiled()
        parameters, buffers = self._host_tensors()
        with torch.no_grad():
            for name, tensor in {**parameters, **buffers}.items():
                source = (
                    self._tensors[name] if name in self._tensors else self._replica_buffers[0][name]
                )
                tensor.copy_(source)
        self._stale = False

    def copyWeightsToHostIfNeeded(self):
        if self._attached and self._stale:
            self.copyWeightsToHost()
            return True
        return False

    def copyWeightsToDevice(self):
        self._check_compiled()
        self._upload()

    def _upload(self):
        parameters, buffers = self._host_tensors()
        with torch.no_grad():
            for name, tensor in parameters.items():
                self._tensors[name].data.copy_(tensor.data)
            for replica in self._replica_buffers:
                for name, tensor in buffers.items():
                    replica[name].copy_(tensor)
        self._stale = False

    def load_state_dict(self, state_dict, strict=True):
        result = torch.nn.Module.load_state_dict(self._model, state_dict, strict)
        if self._attached:
            self.copyWeightsToDevice()
        return result

    def __getattr__(self, attr):
        if attr == "_user_model":
            raise AttributeError(attr)
        return getattr(self._user_model, attr)

    # The device.
    def attachToDevice(self):
        self._check_compiled()
        if self._attached:
            raise createPoptorchError("Device is already attached")
        self._acquire()
        self._upload()

    def _acquire(self):
        if MACHINE["in_use"] + self._ipus > MACHINE["ipus"]:
            raise createPoptorchError(f"Failed to acquire {self._ipus} IPU(s)")
        MACHINE["in_use"] += self._ipus
        self._attached = True

    def detachFromDevice(self):
        self._check_compiled()
        if not self._attached:
            raise createPoptorchError("Device is not attached")
        self.copyWeightsToHostIfNeeded()
        MACHINE["in_use"] -= self._ipus
        self._attached = False

    def destroy(self):
        if self.isCompiled():
            self.copyWeightsToHostIfNeeded()
            if self._device_optimizer is not None:
                self._optimizer._loaded = self._read_optimizer_state()
                self._optimizer._executor = None
            if self._attached:
                MACHINE["in_use"] -= self._ipus
            self._tensors, self._attached = None, False
        if type(self._user_model).__name__.startswith("Poptorch"):
            self._user_model.__dict__.pop("_executor", None)
            self._user_model.__class__ = type(self._user_model).__mro__[1]

    def setOptimizer(self, optimizer):
        self._new_optimizer = optimizer
        if self._attached:
            self._device_optimizer.update(optimizer)
            self._optimizer = optimizer

    def _read_optimizer_state(self):
        return (
            self._device_optimizer.read()
            if self.isCompiled() and self._device_optimizer is not None
            else None
        )

    # Compilation.
    def compile(self, *args, **kwargs):
        if not self.isCompiled():
            self._compile(self._bind(args, kwargs))

    def _bind(self, args, kwargs):
        signature = inspect.signature(type(self._model).forward)
        try:
            bound = signature.bind(self._model, *args, **kwargs)
        except TypeError as error:
            if "missing a required" in str(error):
                name = str(error).split("'")[1]
                raise createPoptorchError(f"Mandatory parameter {name} missing") from error
            raise AssertionError(str(error)) from error
        bound.apply_defaults()
        return {name: _enter(value) for name, value in list(bound.arguments.items())[1:]}

    def _count(self):
        accumulation = self._options.Training.gradient_accumulation if self._training else 1
        return self._options.device_iterations * self._options.replication_factor * accumulation

    def _compile(self, inputs):
        count = self._count()
        for tensor in _tensors(inputs):
            size = tensor.shape[0] if tensor.ndim else 1
            if size % count:
                raise AssertionError(
                    f"Invalid batch dimension: In the input {tensor.shape}, the batch dimension ({size}) must be a "
                    f"multiple of Options.deviceIterations({self._options.device_iterations}) * "
                    f"(Options.replicationFactor({self._options.replication_factor}) / "
                    f"Options.inputReplicaGrouping.input_group_size(1)) * "
                    f"Options.Training.gradientAccumulation({self._options.Training.gradient_accumulation})"
                )
        parameters, buffers = self._host_tensors()
        tensors = {
            n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in parameters.items()
        }
        replicas = range(self._options.replication_factor)
        self._replica_buffers = [
            {n: b.detach().clone() for n, b in buffers.items()} for _ in replicas
        ]
        self._trace(tensors, inputs)
        self._acquire()
        self._tensors, self._inputs = tensors, inputs
        if self._training:
            self._optimizer = self._optimizer or SGD(self._model.parameters(), lr=0.01)
            names = {id(p): n for n, p in parameters.items()}
            self._device_optimizer = DeviceOptimizer(self._optimizer, names, tensors)
            self._optimizer._executor = self

    def _trace(self, tensors, inputs):
        """Run one micro-batch for its structure: blocks, placement, host reads, the loss."""
        buffers = {n: b.clone() for n, b in self._replica_buffers[0].items()}
        names = {id(tensor): name for name, tensor in {**tensors, **buffers}.items()}
        context = self._context = Context(names, strict_blocks=True)
        first = _cut(inputs, 0, self._count())
        with torch.random.fork_rng(devices=[]):
            self._forward({**tensors, **buffers}, first, context, _Tracing())
        if self._training and not context.losses:
            raise createPoptorchError("Couldn't find a loss in graph!")
        if self._training and len(context.losses) > 1:
            raise createPoptorchError("Multiple independent losses found in graph")
        self._check_pipeline(context)

    def _check_pipeline(self, context):
        used = {ipu for _, ipu in context.visits} | {0}
        ipus = max(len(used), max(used) + 1) * self._options.replication_factor
        power = 1 << (ipus - 1).bit_length()
        if power > 64:
            raise createPoptorchError("Too many IPUs requested")
        if power != ipus and not self._options.auto_round_num_ipus:
            raise createPoptorchError(
                f"The model specifies the use of {ipus} IPUs, however PopTorch must reserve a minimum of {power}"
            )
        self._ipus = power
        strategy = object.__getattribute__(self._options, "_strategy")
        if (
            isinstance(strategy, PipelinedExecution)
            and not isinstance(strategy, ShardedExecution)
            and context.visits
        ):
            forward = context.switches + 1
            stages = 2 * forward - 1 if self._training else forward
            ga, name = self._options.Training.gradient_accumulation, "Training.gradientAccumulation"
            if not self._training:
                ga, name = self._options.device_iterations, "deviceIterations"
            if ga < stages:
                raise createPoptorchError(
                    f"poptorch.Options().{name} must be greater than or equal to the number of pipeline stages "
                    f"({stages}) when using poptorch.PipelinedExecution."
                )

    # Execution.
    def _forward(self, tensors, inputs, context, tracing=None):
        before = _context.running
        _context.running = context
        try:
            with _DeviceOps(), tracing or contextlib.nullcontext():
                return torch.func.functional_call(self._model, tensors, (), inputs)
        finally:
            _context.running = before

    def __call__(self, *args, **kwargs):
        if self._options.connection_type == enums.ConnectionType.Never:
            raise AssertionError(
                "Trying to run a model on an offline device (ConnectionType.Never)"
            )
        inputs = self._bind(args, kwargs)
        if self._tensors is None:
            self._compile(inputs)
        if not self._attached:
            self.attachToDevice()
        _compare(self._inputs, inputs)
        outputs = self._train(inputs) if self._training else self._infer(inputs)
        self._stale = self._training
        return self._collect(outputs)

    def _infer(self, inputs):
        count, replicas = self._count(), self._options.replication_factor
        with torch.no_grad():
            return [
                self._forward(
                    {**self._tensors, **self._replica_buffers[k % replicas]},
                    _cut(inputs, k, count),
                    _blank(),
                )
                for k in range(count)
            ]

    def _train(self, inputs):
        ga, replicas = (
            self._options.Training.gradient_accumulation,
            self._options.replication_factor,
        )
        count, outputs = self._count(), []
        for iteration in range(self._options.device_iterations):
            deferred = {}
            for tensor in self._tensors.values():
                tensor.grad = None
            for k in range(iteration * ga * replicas, (iteration + 1) * ga * replicas):
                context = _blank()
                tensors = {**self._tensors, **self._replica_buffers[k % replicas]}
                found = self._forward(tensors, _cut(inputs, k, count), context)
                self._check_numbers(context.losses)
                (context.losses[0] * self._device_optimizer.loss_scaling).backward()
                deferred.update({id(op[0][1]): op for op in context.deferred})
                outputs.append(_map(_leave, found))
            self._update(ga * replicas, deferred)
        return outputs

    def _update(self, micro_batches, deferred):
        self._reduce(micro_batches)
        steps = [
            self._device_optimizer.step,
            lambda: [function(*inputs) for inputs, function in deferred.values()],
        ]
        with torch.no_grad():
            for step in steps if EMA_ORDER["order"] == "after" else reversed(steps):
                step()
        self._check_numbers(self._tensors.values())

    def _check_numbers(self, tensors):
        """The device stops at a number that is not finite, where its options say so; here the loss
        and the weights."""
        checks = self._options._Popart.options.get("enableFloatingPointChecks", False)
        if checks and not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise Error("'poplar_application_runtime_error': floating point exception")

    def _reduce(self, micro_batches):
        """Mean over accumulation, replicas and processes, less the loss scale."""
        processes = self._options.Distributed.numProcesses
        mean = (
            self._options.Training.accumulation_and_replication_reduction_type
            == enums.ReductionType.Mean
        )
        divisor = self._device_optimizer.loss_scaling * (micro_batches * processes if mean else 1)
        for tensor in self._tensors.values():
            if tensor.requires_grad:
                if tensor.grad is None:
                    tensor.grad = torch.zeros_like(tensor)
                if processes > 1:
                    dist.all_reduce(tensor.grad)
                tensor.grad /= divisor

    def _collect(self, outputs):
        mode, replicas = self._options.output_mode, self._options.replication_factor
        if mode == enums.OutputMode.Final:
            outputs = outputs[-replicas:]
        elif mode == enums.OutputMode.Sum:
            parts = [outputs[r::replicas] for r in range(replicas)]
            outputs = [_map(lambda *values: sum(values), *part) for part in parts]
        return _map(_join, *outputs)


def _map(function, first, *others):
    """Apply to the leaves of nested tuples, lists and dicts of one form."""
    if isinstance(first, dict):
        return {
            key: _map(function, value, *(other[key] for other in others))
            for key, value in first.items()
        }
    if isinstance(first, (tuple, list)):
        return type(first)(_map(function, *parts) for parts in zip(first, *others, strict=True))
    return function(first, *others)


def _leaves(tree):
    found = []
    _map(found.append, tree)
    return found


def _blank():
    return Context({}, strict_blocks=False)


def _enter(value):
    """What the device makes of an input's type."""
    if isinstance(value, (tuple, list)):
        return type(value)(_enter(part) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    narrower = {
        torch.int64: torch.int32,
        torch.float64: torch.float32,
        torch.bfloat16: torch.float32,
    }
    return value.detach().to(narrower.get(value.dtype, value.dtype)).contiguous()


def _leave(value):
    if not isinstance(value, torch.Tensor):
        return value
    narrower = {torch.int64: torch.int32, torch.float64: torch.float32}
    return value.detach().to(narrower.get(value.dtype, value.dtype)).clone()


def _join(*values):
    if not isinstance(values[0], torch.Tensor):
        return values[0]
    if values[0].ndim:
        return torch.cat(values)
    return torch.stack(values) if len(values) > 1 else values[0]


def _tensors(inputs):
    return [value for value in _leaves(inputs) if isinstance(value, torch.Tensor)]


def _cut(inputs, place, count):
    """Micro-batch `place` of `count`."""

    def cut(value):
        if not isinstance(value, torch.Tensor) or not value.ndim:
            return value
        size = value.shape[0] // count
        return value.narrow(0, place * size, size).clone()

    return _map(cut, inputs)


def _compare(expected, inputs):
    for name, value in expected.items():
        old, new = _leaves(value), _leaves(inputs[name])
        if len(old) != len(new):
            raise createPoptorchError(
                f"Length mismatch for {name}: expected {len(old)} but got {len(new)}. {ADVICE}"
            )
        for before, now in zip(old, new, strict=True):
            if type(before) is not type(now) or not isinstance(before, torch.Tensor):
                if before is not now and before != now:
                    raise createPoptorchError(
                        f"Value mismatch for {name}: expected {before} but got {now}. {ADVICE}"
                    )
            elif before.dtype != now.dtype:
                text = f"Data type mismatch for {name}: expected {before.dtype} but got {now.dtype}"
                raise createPoptorchError(f"{text}. {ADVICE}")
            elif before.shape != now.shape:
                text = f"Shape mismatch for {name}: expected {before.shape} but got {now.shape}"
                raise createPoptorchError(f"{text}. {ADVICE}")
