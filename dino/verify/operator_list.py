"""Reads the unique operators of one training step from package data.

`tools/record_operators.py` writes the file. It holds what autograd and autocast hand to a backend:
ATen operators with sizes, strides, types and numbers, without tensor values. Operators that torch
composes from others (`linear`, `scaled_dot_product_attention`) appear as their parts, even if a
card's software has its own operator for them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any, NamedTuple

import torch

FILE = "operators_vit_small.json"
FORMATS = ("fp32", "bf16", "ops")
BATCHES = (1, 64)  # images of the recorded steps
TYPES = {  # as the file writes them
    **{"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64},
    **{"u8": torch.uint8, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool},
}
SPECIAL = {"contiguous": torch.contiguous_format, "preserve": torch.preserve_format}
DEVICE = "device"  # stands for the device of the step
TENSOR = re.compile(r"(\w+)\[([\d,]*)(?::([\d,]*)\+(\d+))?\](@cpu)?")
SHOWN = 100  # most characters of arguments in an operator's name


class Spec(NamedTuple):
    """One tensor of a call.

    Attributes:
        dtype: Type of its elements.
        size: Its sizes.
        stride: Its strides in elements; None if it is contiguous and starts its memory.
        offset: Elements before it in its memory.
        on_host: Whether it is in host memory, because the call uploads it.
    """

    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    offset: int = 0
    on_host: bool = False

    @property
    def extent(self) -> int:
        """Elements of memory that the tensor needs."""
        if 0 in self.size:
            return 0
        if self.stride is None:
            return functools.reduce(int.__mul__, self.size, 1)
        return (
            self.offset
            + 1
            + sum((size - 1) * step for size, step in zip(self.size, self.stride, strict=True))
        )


class Call(NamedTuple):
    """One operator as a step calls it.

    Attributes:
        name: Operator, number and arguments; unique in the file, the same in every list.
        operator: Name in `torch.ops`, such as "aten.mm.default".
        arguments: Tensors as `Spec`, torch's types, other values unchanged; DEVICE stands for a
            device.
        keywords: The same by name.
        results: Type of each returned tensor.
    """

    name: str
    operator: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[torch.dtype, ...]

    def find_overload(self) -> Callable[..., Any] | None:
        """Return the operator of the installed torch, or None if it is missing."""
        found: Any = torch.ops
        for part in self.operator.split("."):
            found = getattr(found, part, None)
            if found is None:
                return None
        overload: Callable[..., Any] = found
        return overload

    def specs(self) -> Iterator[Spec]:
        """Yield every tensor among the arguments."""
        yield from find_leaves([self.arguments, list(self.keywords.values())], Spec)


def find_leaves(value: Any, kind: type) -> Iterator[Any]:
    """Yield all instances of a class in nested lists and tuples; a named tuple can be one."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from find_leaves(item, kind)


def read_calls(number_format: str, batch: int, content: dict[str, Any] | None = None) -> list[Call]:
    """Return the unique operators of a step, in the order of their first call.

    Args:
        number_format: One of FORMATS.
        batch: One of BATCHES.
        content: Content of a file; by default the package's own.

    Raises:
        ValueError: The file does not have this list.
    """
    if number_format not in FORMATS or batch not in BATCHES:
        raise ValueError(
            f"no step of {number_format} with {batch} images was recorded; formats are "
            f"{', '.join(FORMATS)}, batches {', '.join(map(str, BATCHES))}"
        )
    content = content or read_file()
    return [_read_call(number, content) for number in content["steps"][number_format][str(batch)]]


@functools.cache
def read_file() -> dict[str, Any]:
    """Return the file: `recorded`, `lists` of tensors, `operators`, `steps` by format and batch."""
    content: dict[str, Any] = json.loads(
        resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    )
    return content


def _read_call(number: int, content: dict[str, Any]) -> Call:
    operator, arguments, keywords, results = content["operators"][number]
    shown = ", ".join(_show(value, content["lists"]) for value in [*arguments, *keywords.values()])
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    return Call(
        name=f"{operator.replace('.', '::', 1)} #{number} ({shown})",
        operator=operator,
        arguments=tuple(_read(value, content["lists"]) for value in arguments),
        keywords={key: _read(value, content["lists"]) for key, value in keywords.items()},
        results=tuple(TYPES[word] for word in results.split()),
    )


def _show(value: Any, lists: list[list[str]]) -> str:
    if isinstance(value, str) and value.startswith("*"):
        return f"{len(lists[int(value[1:])])} tensors"
    if isinstance(value, list):
        return f"[{', '.join(_show(item, lists) for item in value)}]"
    return str(value)


def _read(value: Any, lists: list[list[str]]) -> Any:
    """Read a value of the file: "f32[2,3]" is a tensor, "f32" a type, "*4" list number 4."""
    if isinstance(value, list):
        return [_read(item, lists) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("*"):
        return [read_spec(item) for item in lists[int(value[1:])]]
    return read_spec(value) if TENSOR.fullmatch(value) else {**TYPES, **SPECIAL}.get(value, value)


def read_spec(text: str) -> Spec:
    """Read "f32[2,3]", "f32[2,3:1,2+0]" (strides and offset) or "f32[2]@cpu"."""
    match = TENSOR.fullmatch(text)
    if match is None:
        raise ValueError(f"a tensor must have the form f32[2,3:1,2+0]@cpu (got {text!r})")
    dtype, size, stride, offset, host = match.groups()
    strides = None if stride is None else _read_numbers(stride)
    return Spec(TYPES[dtype], _read_numbers(size), strides, int(offset or 0), bool(host))


def write_spec(spec: Spec) -> str:
    """Return the text that `read_spec` reads."""
    dtype = next(word for word, dtype in TYPES.items() if dtype == spec.dtype)
    layout = "" if spec.stride is None else f":{','.join(map(str, spec.stride))}+{spec.offset}"
    return f"{dtype}[{','.join(map(str, spec.size))}{layout}]{'@cpu' * spec.on_host}"


def _read_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)
