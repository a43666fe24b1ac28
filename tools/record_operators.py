"""Record the unique operators of one training step on the simulated Gaudi, for `dino.verify`.

    python tools/record_operators.py

This writes dino/verify/operators_vit_small.json. The step is the first real step of a run: ViT-S/16
with its defaults (2 views of 224 and 8 of 96 pixels, 65536 prototypes, AdamW, clipping, stochastic
depth 0.1), including augmentation. It runs on fake tensors of the simulated card, which have sizes
and types but no memory, so a batch of 64 costs no more than a batch of 1. The card's autocast and
torch's dispatcher decide as on the card, and a mode above them sees the operators that reach a
backend. Operators count as equal if they differ only in floating-point numbers, or in the offset of
a tensor in its memory.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from dino.verify import operator_list  # noqa: E402
from tests.running import SERVER, on_simulated_card  # noqa: E402

NETWORK = ("--arch", "vit_small", "--patch_size", "16")
MODE = ("--device", "hpu", "--lazy_mode", "false")  # the operators are the same in all modes
LEFT_OUT = {"layout", "pin_memory"}  # keywords without meaning on a single device
KEEPING = ("clone", "_to_copy", "empty_like", "empty_strided", "new_empty_strided")
ALIGNMENT = 64  # elements, more than any kernel asks for
MOST = 10  # longest list of tensors that is written inline

Entry = list[Any]  # operator, arguments, keywords, types of the results


def main() -> None:
    """Record all number formats and batch sizes, and write the file."""
    steps = record_all(operator_list.FORMATS, operator_list.BATCHES)
    path = ROOT / "dino" / "verify" / operator_list.FILE
    path.write_text(write(steps), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    for number_format, batches in steps.items():
        print(number_format, {batch: len(entries) for batch, entries in batches.items()})


def record_all(formats: Sequence[str], batches: Sequence[int]) -> dict[str, dict[int, list[Entry]]]:
    """Record each format in a separate process, because the bridge reads its op lists only once."""
    with concurrent.futures.ProcessPoolExecutor(
        2, mp_context=SERVER, max_tasks_per_child=1
    ) as pool:
        return dict(
            zip(formats, pool.map(record, formats, [tuple(batches)] * len(formats)), strict=True)
        )


def record(number_format: str, batches: Sequence[int]) -> dict[int, list[Entry]]:
    """Record one format in a process that has not imported the bridge yet."""
    on_simulated_card()
    from dino.cli.options import parse
    from dino.constants import forget_constants
    from dino.devices import open_device
    from dino.runtime.context import Run
    from dino.runtime.distributed import Processes
    from dino.runtime.launch import Launch
    from dino.training.config import TrainConfig

    recorded = {}
    for batch in batches:
        flags = ["--precision", number_format, "--batch_size_per_device", str(batch)]
        config = parse(TrainConfig, [*NETWORK, *MODE, *flags])
        device = open_device(config.device, precision=config.precision)
        run = Run(device=device, processes=Processes(Launch(), device.collective_backend, "env://"))
        forget_constants()  # the cached constants are the last step's fake tensors
        recorded[batch] = record_step(config, run)
    return recorded


def record_step(config: Any, run: Any) -> list[Entry]:
    """Return the unique operators of the first step."""
    from dino.data.synthetic import make_batch
    from dino.devices.cpu import CpuDevice
    from dino.training.build import build_networks, build_program, build_recipe
    from dino.training.draws import StepDraws
    from dino.training.optim import build_optimizer
    from dino.training.plan import build_plan

    with drawing_nothing():
        networks = build_networks(config, run)
    host, size = CpuDevice("fp32"), config.data.batch_size_per_device
    batch = make_batch(
        build_recipe(config), size, seed=0, device=host.torch_device, to_device=host.to_device
    )
    plan = build_plan(config, iterations=1, world_size=1, device=run.device)
    draws = StepDraws(config, networks[0], run.device)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for network in networks:
            make_fake(network, fake)
        program = build_program(config, *networks, run)
        step = run.device.compile_train(
            program, build_optimizer(config.optim.optimizer, networks[0]), 1
        )
        with Recorder() as recorder:
            step(type(batch)(*map(fake.from_tensor, batch)), plan.inputs(0, draws.begin(0)))
    return list(recorder.entries.values())


@contextlib.contextmanager
def drawing_nothing() -> Iterator[None]:
    """Skip the initialization of networks: only shapes count, and drawing takes seconds."""
    before = {
        name: getattr(nn.init, name) for name in ("trunc_normal_", "kaiming_uniform_", "uniform_")
    }
    for name in before:
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(nn.init, name, function)


def make_fake(network: nn.Module, fake: FakeTensorMode) -> None:
    """Replace parameters and buffers with tensors without memory."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            tensor = fake.from_tensor(parameter.detach())
            module._parameters[name] = nn.Parameter(tensor, parameter.requires_grad)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = fake.from_tensor(buffer)


class Recorder(TorchDispatchMode):
    """Records each new operator that takes or returns a tensor on the device."""

    def __init__(self) -> None:
        """Start without entries."""
        super().__init__()
        self.entries: dict[str, Entry] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """See torch."""
        kwargs = kwargs or {}
        inputs = [*args, *kwargs.values()]
        # In-place operators change their arguments, so these are described first.
        described = [
            describe(list(args)),
            {k: describe(v) for k, v in kwargs.items() if k not in LEFT_OUT},
        ]
        result = pack(operator, operator(*args, **kwargs))
        results = list(operator_list.find_leaves(result, torch.Tensor))
        tensors = [*operator_list.find_leaves(inputs, torch.Tensor), *results]
        if operator.namespace == "aten" and any(tensor.device.type != "cpu" for tensor in tensors):
            described[1] = {key: value for key, value in described[1].items() if value is not None}
            types_of_results = " ".join(describe(tensor.dtype) for tensor in results)
            entry = [str(operator), *described, types_of_results]
            self.entries.setdefault(identify(entry), entry)
        return result


def pack(operator: Any, result: Any) -> Any:
    """Make a result contiguous, as the card's kernels do; fake tensors follow the inputs' strides.

    Exceptions are views, which share their input's memory, and copies, which keep its strides.
    """
    name = operator.overloadpacket.__name__
    is_view = any(value.alias_info is not None for value in operator._schema.returns)
    if name in KEEPING or is_view:
        return result
    if isinstance(result, list | tuple):
        return type(result)(pack(operator, item) for item in result)
    return result.contiguous() if isinstance(result, torch.Tensor) else result


def identify(entry: Entry) -> str:
    """Return the key of an operator; it ignores floating-point numbers and offsets in memory."""
    text = re.sub(r"-?\d+\.\d+(e[+-]\d+)?|-?\d+e[+-]\d+|-?Infinity", "0.0", json.dumps(entry))
    return re.sub(r"\+[1-9]\d*\]", "+1]", text)


def describe(value: Any) -> Any:
    """Return a value as it is written to the file."""
    if isinstance(value, torch.Tensor):
        return operator_list.write_spec(measure(value))
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, torch.device):
        return operator_list.DEVICE if value.type != "cpu" else "cpu"
    if isinstance(value, torch.dtype | torch.memory_format):
        names = {**operator_list.TYPES, **operator_list.SPECIAL}
        return next(name for name, meaning in names.items() if meaning == value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def measure(tensor: torch.Tensor) -> operator_list.Spec:
    """Return type, sizes and layout of a tensor; the stride of a dimension of 1 is ignored."""
    # Where a tensor begins matters only for its alignment; views of one large buffer would otherwise
    # need its memory once each.
    offset = tensor.storage_offset() % ALIGNMENT
    plain = tensor.is_contiguous() and offset == 0
    stride = [
        step if size > 1 else 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    return operator_list.Spec(
        dtype=tensor.dtype,
        size=tuple(tensor.shape),
        stride=None if plain else tuple(stride),
        offset=offset,
        on_host=tensor.device.type == "cpu",
    )


def write(steps: dict[str, dict[int, list[Entry]]]) -> str:
    """Return the file's text; shared operators and long lists of tensors are written once."""
    lists: dict[str, int] = {}
    numbers: dict[str, int] = {}
    operators: list[Entry] = []
    places: dict[str, dict[str, list[int]]] = {}

    def share(value: Any) -> Any:
        is_long = isinstance(value, list) and len(value) > MOST
        if is_long and all(isinstance(item, str) for item in value):
            return f"*{lists.setdefault(json.dumps(value), len(lists))}"
        return value

    for number_format, batches in steps.items():
        for batch, entries in batches.items():
            for entry in entries:
                number = numbers.setdefault(identify(entry), len(numbers))
                if number == len(operators):
                    operators.append([entry[0], [share(value) for value in entry[1]], *entry[2:]])
                places.setdefault(number_format, {}).setdefault(str(batch), []).append(number)
    recorded = {
        "by": "tools/record_operators.py",
        "network": " ".join(NETWORK),
        "torch": find_torch(),
    }
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in operators)
    parts = [
        f'"recorded": {json.dumps(recorded)}',
        f'"lists": [\n{",".join(lists)}\n]',
        f'"operators": [\n{lines}\n]',
    ]
    return (
        "{" + ",\n".join([*parts, f'"steps": {json.dumps(places, separators=(",", ":"))}']) + "}\n"
    )


def find_torch() -> str:
    """Return the version of torch, such as "2.9"; others may decompose operators differently."""
    return ".".join(torch.__version__.split(".")[:2])


if __name__ == "__main__":
    main()
