"""Operator replay: runs the unique operators of one training step one by one, device against CPU.

The reference is the same operator on the CPU in float32 with the same inputs: 16-bit inputs are
widened, and a result may be off by the rounding of its own type. Views, copies without a change of
type, comparisons and integer results are compared exactly. In-place operators are compared by the
inputs that they change, random ones by range and moments. In compiled mode the replay is eager:
nothing is compiled for one operator. `operator_numbers` holds the tolerances.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dino.devices.eager import EagerDevice
from dino.verify.operator_inputs import Inputs
from dino.verify.operator_list import BATCHES, FORMATS, Call, find_leaves, read_calls
from dino.verify.operator_numbers import compare

__all__ = ["BATCHES", "FORMATS", "Outcome", "Status", "list_operators", "replay"]

Status = Literal["pass", "missing", "failing", "inaccurate", "fell back", "not run"]

# Bytes of inputs; inputs, widened inputs and results are in memory at the same time.
LARGEST = 8 << 30
LAUNCHES, SECONDS = 20, 0.02  # per timing, whichever is less; TIMINGS timings give the median
TIMINGS = 3

# The bridge's message for an operator that it must not run on the host.
UNSUPPORTED = "is not yet supported on"
MISSING = (UNSUPPORTED, "Could not run")
NO_MEMORY = ("out of memory", "allocation failed", "can't allocate memory", "not enough memory")
# The bridge's variable: if set, it refuses to run other operators on the host.
PLACE_ON_CPU = "PT_HPU_PLACE_ON_CPU"


class Outcome(NamedTuple):
    """The outcome of one operator.

    Attributes:
        operator: Name of the call, as passed to `report`.
        status: One or two words.
        detail: The reason, if the status is not "pass".
        microseconds: Time of a launch, if it ran: the median of launches without waiting in
            between.
    """

    operator: str
    status: Status
    detail: str = ""
    microseconds: float | None = None


def list_operators(number_format: str, *, batch: int) -> list[str]:
    """Return the names of all calls; a call has the same name in every list.

    Raises:
        ValueError: The list was not recorded.
    """
    return [call.name for call in read_calls(number_format, batch)]


def replay(
    device: EagerDevice,
    number_format: str,
    *,
    batch: int,
    seconds: float,
    report: Callable[[str], None],
    skip: Collection[str] = (),
) -> Iterator[Outcome]:
    """Run the operators of a step one by one; yield each outcome as soon as it is known.

    Args:
        device: The device; its number format does not matter, since calls hold types after
            autocast.
        number_format: One of FORMATS.
        batch: Images of the step, one of BATCHES.
        seconds: No operator starts after this time; the rest is "not run".
        report: Gets an operator's name before it runs, so that a parent can name one that hangs or
            ends the process.
        skip: Names to leave out.

    Raises:
        ValueError: The list was not recorded.
    """
    end = time.monotonic() + seconds
    for call in read_calls(number_format, batch):
        if call.name in skip:
            continue
        if time.monotonic() >= end:
            yield Outcome(call.name, "not run", f"no time was left of {seconds:g} s")
            continue
        report(call.name)
        yield run_call(device, call)


def run_call(device: EagerDevice, call: Call) -> Outcome:
    """Run one operator on the CPU and on the device, compare, and time it."""
    operator = call.find_overload()
    if operator is None:
        return Outcome(call.name, "not run", f"torch {torch.__version__} has no {call.operator}")
    size = sum(spec.extent * spec.dtype.itemsize for spec in call.specs())
    if size > LARGEST:
        return Outcome(
            call.name, "not run", f"its inputs take {size >> 20} MiB, more than {LARGEST >> 20} MiB"
        )
    try:
        with torch.no_grad():
            return _run(device, call, operator)
    except _NoReferenceError as error:
        return Outcome(
            call.name,
            "not run",
            f"no reference, because it fails on the CPU: {_shorten(error.args[0])}",
        )
    except Exception as error:  # noqa: BLE001 - any error of a backend is the finding
        return Outcome(call.name, *explain(device, error))


class _NoReferenceError(Exception):
    """The CPU cannot compute the reference; holds its error."""


def _run(device: EagerDevice, call: Call, operator: Any) -> Outcome:
    inputs = Inputs(call)
    arguments, keywords = inputs.to_device(device.torch_device)
    try:
        expected = _collect(operator, *inputs.widen())
    except Exception as error:  # noqa: BLE001 - as above
        raise _NoReferenceError(error) from error
    before = _count_fallbacks(device)
    found = _collect(operator, arguments, keywords)
    device.mark_step()
    fallbacks = _count_fallbacks(device) - before
    wrong = compare(call, operator, [tensor.to("cpu") for tensor in found], expected)
    del found, expected
    microseconds = measure(device, lambda: operator(*arguments, **keywords))
    fell_back = "the host ran it instead of the device" if fallbacks else ""
    status: Status = "inaccurate" if wrong else "fell back" if fell_back else "pass"
    return Outcome(call.name, status, "; ".join(filter(None, [wrong, fell_back])), microseconds)


def _collect(operator: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> list[Tensor]:
    """Run an operator; return the inputs that it changes, then the other tensors it returns."""
    result = operator(*arguments, **keywords)
    changed: list[Tensor] = []
    for index, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = arguments[index] if index < len(arguments) else keywords.get(argument.name)
            changed += find_leaves([value], Tensor)
    returned = find_leaves([result], Tensor)
    return [
        *changed,
        *(tensor for tensor in returned if all(tensor is not other for other in changed)),
    ]


def measure(device: EagerDevice, launch: Callable[[], object]) -> float:
    """Return microseconds per launch, work included, without waits; call `launch` once before."""

    def repeat(times: int) -> float:
        device.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            launch()
            device.mark_step()
        device.synchronize()
        return (time.perf_counter() - began) / times

    once = repeat(1)
    if once < SECONDS:
        times = min(LAUNCHES, max(1, int(SECONDS / max(once, 1e-9))))
        once = statistics.median(repeat(times) for _ in range(TIMINGS))
    return 1e6 * once


def explain(device: EagerDevice, error: Exception) -> tuple[Status, str]:
    """Return status and cause of an operator that raised an error."""
    text = _shorten(error)
    if UNSUPPORTED in str(error) and os.environ.get(PLACE_ON_CPU):
        return "fell back", f"only the host has it, and {PLACE_ON_CPU} forbids that: {text}"
    if isinstance(error, NotImplementedError) or any(words in str(error) for words in MISSING):
        return "missing", text
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        w in str(error).lower() for w in NO_MEMORY
    ):
        return "failing", f"out of memory: {text}"
    meaning = device.explain(error) if isinstance(error, RuntimeError) else None
    return "failing", f"{text} ({meaning})" if meaning else text


def _shorten(error: Exception) -> str:
    """Return the first line of an error, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def _count_fallbacks(device: EagerDevice) -> float:
    """Return how many operators the host has run for the device, if the device counts them."""
    return sum(
        count for tag, count in device.read_counters().items() if tag.endswith("cpu_fallbacks")
    )
