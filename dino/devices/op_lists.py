"""Mixed precision from two lists of ops (the policy of the Habana bridge) on any device.

Ops in the first list run in bf16, those in the second in fp32. Ops in PROMOTED run in the widest
type of their inputs, and all others in the type that their inputs have. A name covers all overloads
except the in-place ones, which autocast never changes. Only floating-point inputs of up to 32 bits
are cast, and only the first input of a normalization.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dino.devices.config import PrecisionConfig
from dino.devices.untyped import close_kernels, open_kernels, replace_kernel
from dino.errors import OptionError, nearest
from dino.files import find_preset, read_bounded

logger = logging.getLogger(__name__)

LARGEST = 1 << 20  # bytes of a list
# Names in the Gaudi reference's lists that are not ATen functions -> their meaning, or None.
TRANSLATED = {
    "cross_entropy": "cross_entropy_loss",
    "truediv": "div",
    "iadd": None,  # in place, and autocast leaves in-place ops alone
}
# The bridge's own list, which cannot be changed.
PROMOTED = ("add", "addcdiv", "addcmul", "cat", "div", "exp", "mul", "pow", "stack", "sub")
FIRST_INPUT_ONLY = frozenset({"batch_norm", "group_norm", "instance_norm", "layer_norm"})
NOT_COMPUTING = frozenset(
    {"clone", "empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"}
)


@dataclass(frozen=True, kw_only=True)
class OpLists:
    """Names of ATen functions that run in bf16 and in fp32; no name is in both.

    `source` says where the lists come from.
    """

    bf16: tuple[str, ...]
    fp32: tuple[str, ...]
    source: str = field(default="op lists", compare=False)

    @property
    def promoted(self) -> tuple[str, ...]:
        """Names of ops that run in the widest type of their inputs."""
        return tuple(name for name in PROMOTED if name not in {*self.bf16, *self.fp32})

    def describe(self) -> Iterator[str]:
        """Yield one line per op: its name and its number format."""
        for number_format, names in (
            ("bf16", self.bf16),
            ("fp32", self.fp32),
            ("the widest of its inputs", self.promoted),
        ):
            yield from (f"op {name}: {number_format}" for name in names)


def read_op_lists(config: PrecisionConfig) -> OpLists:
    """Read the two files that `hmp_bf16` and `hmp_fp32` name; level O2 runs all other ops in bf16.

    Raises:
        OptionError: A file is missing or holds an unknown op; the message names the line and the
            nearest op.
    """
    low = _read_names(config.hmp_bf16, "`hmp_bf16`")
    high = _read_names(config.hmp_fp32, "`hmp_fp32`")
    if config.hmp_opt_level == "O2":
        low = [*low, *(name for name in find_computing_ops() if name not in high)]
    both = [name for name in high if name in low]
    if both:
        logger.warning("%s: in both op lists; bf16 wins, as on the card", ", ".join(both))
    level = " (O2)" if config.hmp_opt_level == "O2" else ""
    source = f"op lists {config.hmp_bf16}, {config.hmp_fp32}{level}"
    only_high = tuple(name for name in dict.fromkeys(high) if name not in both)
    return OpLists(bf16=tuple(dict.fromkeys(low)), fp32=only_high, source=source)


def find_functions() -> frozenset[str]:
    """Return the names that a list may hold, by the bridge's own rule (gen_op.py).

    These are the ATen functions that are neither in place nor part of a backward pass.
    """
    names = {full.removeprefix("aten::").split(".")[0] for full in _all_names()}
    return frozenset(
        n for n in names if not n.endswith(("_", "_out")) and "backward" not in n and "cud" not in n
    )


def find_computing_ops() -> list[str]:
    """Return the functions that compute something from tensors: no views, copies, private ones."""
    public = [name for name in find_functions() - NOT_COMPUTING if not name.startswith("_")]
    return sorted(name for name in public if any(map(_computes, find_overloads(name))))


def find_overloads(name: str) -> list[torch._ops.OpOverload]:
    """Return all functional overloads of an ATen function."""
    packet = getattr(torch.ops.aten, name)
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return [overload for overload in overloads if not overload._schema.is_mutable]


class CastingOps:
    """The policy as autocast kernels for cpu or cuda, which replace torch's own until `close`."""

    def __init__(self, device_type: str, lists: OpLists) -> None:
        """Replace the autocast kernels of `device_type`, process-wide."""
        self.device_type, self.key = device_type, f"Autocast{device_type.upper()}"
        self.kernels = open_kernels()
        casts: dict[str, Callable[[Iterable[Tensor]], torch.dtype]] = {
            **dict.fromkeys(lists.bf16, lambda _: torch.bfloat16),
            **dict.fromkeys(lists.fp32, lambda _: torch.float32),
            **dict.fromkeys(lists.promoted, _find_widest),
        }
        for full in _all_names():
            if full.split("::")[1].split(".")[0] not in casts and _has_kernel(full, self.key):
                replace_kernel(self.kernels, full, torch.library.fallthrough_kernel, self.key)
        for name, choose in casts.items():
            for overload in find_overloads(name):
                kernel = self._build_kernel(overload, choose, first_only=name in FIRST_INPUT_ONLY)
                replace_kernel(self.kernels, overload, kernel, self.key)

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which ops follow the lists."""
        # Torch's cache of cast weights belongs to the replaced kernels.
        return torch.autocast(self.device_type, dtype=torch.bfloat16, cache_enabled=False)

    def close(self) -> None:
        """Restore torch's own autocast."""
        close_kernels(self.kernels)

    def _build_kernel(
        self,
        overload: torch._ops.OpOverload,
        choose: Callable[[Iterable[Tensor]], torch.dtype],
        *,
        first_only: bool,
    ) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            dtype = choose(self._find_eligible([*args, *kwargs.values()]))
            with torch.autocast(self.device_type, enabled=False):
                if first_only:
                    return overload(self._cast(args[0], dtype), *args[1:], **kwargs)
                cast = {name: self._cast(value, dtype) for name, value in kwargs.items()}
                return overload(*(self._cast(value, dtype) for value in args), **cast)

        return kernel

    def _is_eligible(self, value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.device.type == self.device_type
            and value.is_floating_point()
            and value.dtype != torch.float64
        )

    def _find_eligible(self, values: Iterable[Any]) -> Iterator[Tensor]:
        for value in values:
            items = value if isinstance(value, list | tuple) else [value]
            yield from filter(self._is_eligible, items)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, list | tuple):
            return [self._cast(item, dtype) for item in value]
        return value.to(dtype) if self._is_eligible(value) else value


def _find_widest(tensors: Iterable[Tensor]) -> torch.dtype:
    return functools.reduce(
        torch.promote_types, {tensor.dtype for tensor in tensors}, torch.bfloat16
    )


def _read_names(file: str, spelling: str) -> list[str]:
    try:
        lines = read_bounded(find_preset(file), LARGEST).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"{spelling} {file} cannot be read ({error})", remedy="give a file with one op per line"
        ) from error
    functions, names = find_functions(), []
    for number, line in enumerate(lines, start=1):
        name = line.split("#")[0].strip()
        if not name:
            continue
        if name in TRANSLATED:
            meaning = TRANSLATED[name]
            effect = f"means {meaning}" if meaning else "is ignored: no op"
            logger.info("%s line %d: %s %s", file, number, name, effect)
            names += [meaning] if meaning else []
        elif name in functions:
            names.append(name)
        else:
            hint = nearest(name, sorted(functions))
            raise OptionError(f"{spelling} {file} line {number}: no op is named {name!r}: {hint}")
    return names


@functools.cache
def _all_names() -> tuple[str, ...]:
    """Return all ATen operators as `aten::name.overload`."""
    return tuple(
        name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")
    )


def _has_kernel(full: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(full, key)


def _computes(overload: torch._ops.OpOverload) -> bool:
    """Whether an operator turns a tensor into a new tensor."""
    schema = overload._schema
    takes_tensor = any("Tensor" in str(argument.type) for argument in schema.arguments)
    returns_new = any(
        "Tensor" in str(result.type) and result.alias_info is None for result in schema.returns
    )
    return takes_tensor and returns_new
