"""Record the unique operators of one training step on the simulated Gaudi, for `python -m dino.verify`.

    python tools/record_operators.py

Writes dino/verify/operators_vit_small.json. The step is the product's own: ViT-S/16 with its defaults (2 views of 224
and 8 of 96 pixels, 65536 prototypes, AdamW, clipping, stochastic depth 0.1), augmentation included, the first one of a
run. It runs on fake tensors of the simulated card, which have sizes and types but no memory, so that a batch of 64
costs no more than one of 1; what the card's autocast and torch's dispatcher decide is decided as on the card. A mode
above them sees what is left for a backend. Operators are the same if they differ only in floating-point numbers, or
in how far behind the beginning of its memory a tensor begins.
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
LEFT_OUT = {"layout", "pin_memory"}  # keywords that say nothing on one device
KEEPING = ("clone", "_to_copy", "empty_like", "empty_strided", "new_empty_strided")
MOST = 10  # tensors of a list that stands where it is used

Entry = list[Any]  # operator, arguments, keywords, types of the results


def main() -> None:
    """Record every format and batch, and write the file."""
    steps = record_all(operator_list.FORMATS, operator_list.BATCHES)
    path = ROOT / "dino" / "verify" / operator_list.FILE
    path.write_text(write(steps), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    for number_format, batches in steps.items():
        print(number_format, {batch: len(entries) for batch, entries in batches.items()})


def record_all(formats: Sequence[str], batches: Sequence[int]) -> dict[str, dict[int, list[Entry]]]:
    """Record each format in a process of its own, since the bridge reads its op lists once."""
    with concurrent.futures.ProcessPoolExecutor(
        2, mp_context=SERVER, max_tasks_per_child=1
    ) as pool:
        return dict(
            zip(formats, pool.map(record, formats, [tuple(batches)] * len(formats)), strict=True)
        )


def record(number_format: str, batches: Sequence[int]) -> dict[int, list[Entry]]:
    """Record one format, in a process that has not imported the bridge yet."""
    on_simulated_card()
    from dino.cli.options import parse
    from dino.data.photometric import keep_constant
    from dino.devices import open_device
    from dino.runtime.context import Run
    from dino.runtime.distributed import Processes
    from dino.runtime.launch import Launch
    from dino.training.config import TrainConfig

    recorded = {}
    for batch in batches:
        words = [
            *NETWORK,
            *MODE,
            "--precision",
            number_format,
            "--batch_size_per_device",
            str(batch),
        ]
        config = parse(TrainConfig, words)
        device = open_device(config.device, precision=config.precision)
        run = Run(device=device, processes=Processes(Launch(), device.collective_backend, "env://"))
        keep_constant.cache_clear()  # those of the last step belong to its fake tensors
        recorded[batch] = record_step(config, run)
    return recorded


def record_step(config: Any, run: Any) -> list[Entry]:
    """The unique operators of the first step."""
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
    """Networks get whatever is in their memory: only their shapes count, and drawing takes seconds."""
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
    """Replace parameters and buffers by tensors without memory."""
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            made = nn.Parameter(
                fake.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad
            )
            module._parameters[name] = made
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = fake.from_tensor(buffer)


class Recorder(TorchDispatchMode):
    """Writes down each new operator that takes or gives a tensor of the device."""

    def __init__(self) -> None:
        """Nothing so far."""
        super().__init__()
        self.entries: dict[str, Entry] = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """See torch."""
        kwargs = kwargs or {}
        given = [*args, *kwargs.values()]
        # In-place operators change their arguments, so these are written down before.
        described = [
            describe(list(args)),
            {k: describe(v) for k, v in kwargs.items() if k not in LEFT_OUT},
        ]
        result = pack(operator, operator(*args, **kwargs))
        results = list(operator_list.find_leaves(result, torch.Tensor))
        tensors = [*operator_list.find_leaves(given, torch.Tensor), *results]
        if operator.namespace == "aten" and any(tensor.device.type != "cpu" for tensor in tensors):
            described[1] = {key: value for key, value in described[1].items() if value is not None}
            entry = [
                str(operator),
                *described,
                " ".join(describe(tensor.dtype) for tensor in results),
            ]
            self.entries.setdefault(identify(entry), entry)
        return result


def pack(operator: Any, result: Any) -> Any:
    """What a kernel of the card gives is contiguous, where a fake tensor follows the strides of the inputs.

    Views share their input's memory, and copies keep its strides.
    """
    name = operator.overloadpacket.__name__
    if name in KEEPING or any(each.alias_info is not None for each in operator._schema.returns):
        return result
    if isinstance(result, list | tuple):
        return type(result)(pack(operator, item) for item in result)
    return result.contiguous() if isinstance(result, torch.Tensor) else result


def identify(entry: Entry) -> str:
    """What makes an operator the same: no floating-point number, and not how far in its memory a tensor begins."""
    text = re.sub(r"-?\d+\.\d+(e[+-]\d+)?|-?\d+e[+-]\d+|-?Infinity", "0.0", json.dumps(entry))
    return re.sub(r"\+[1-9]\d*\]", "+1]", text)


def describe(value: Any) -> Any:
    """A value as the file has it."""
    if isinstance(value, torch.Tensor):
        return operator_list.write_spec(measure(value))
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, torch.device):
        return operator_list.DEVICE if value.type != "cpu" else "cpu"
    if isinstance(value, torch.dtype | torch.memory_format):
        known = {**operator_list.TYPES, **operator_list.SPECIAL}
        return next(word for word, meaning in known.items() if meaning == value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def measure(tensor: torch.Tensor) -> operator_list.Spec:
    """Type, sizes and place of a tensor; the stride of a dimension of 1 means nothing."""
    plain = tensor.is_contiguous() and tensor.storage_offset() == 0
    stride = [
        step if size > 1 else 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    return operator_list.Spec(
        dtype=tensor.dtype,
        size=tuple(tensor.shape),
        stride=None if plain else tuple(stride),
        offset=tensor.storage_offset(),
        on_host=tensor.device.type == "cpu",
    )


def write(steps: dict[str, dict[int, list[Entry]]]) -> str:
    """The file: an operator of several steps stands there once, and so does a long list of tensors."""
    lists: dict[str, int] = {}
    numbers: dict[str, int] = {}
    operators: list[Entry] = []
    places: dict[str, dict[str, list[int]]] = {}

    def share(value: Any) -> Any:
        if (
            isinstance(value, list)
            and len(value) > MOST
            and all(isinstance(item, str) for item in value)
        ):
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
    """The installed torch, as "2.9"; another one may compose its operators of others."""
    return ".".join(torch.__version__.split(".")[:2])


if __name__ == "__main__":
    main()
