"""Not part of the bridge: the simulated device behind this package and what the environment said at
import."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Collection
from types import ModuleType

import torch

from . import _op_lists
from ._release import SIMULATOR, read_variable, table

# The number operands that lazy mode uploads as tensors; every other number is part of the graph.
UPLOADED = [
    f"{op}.other" for op in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")
]
UPLOADED += ["add.alpha", "addcmul.value", "addcdiv.value"]
FAULTS = ("refuse", "wrong", "hang", "oom", "kill", "fallback")  # in HPU_SIMULATOR_FAULT


def _load_device() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_hpu_simulator_build", SIMULATOR / "build.py")
    assert spec is not None and spec.loader is not None
    build = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(build)
    return build.load_extension()


def _register_autocast() -> None:
    policies = _op_lists.choose_policies()
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if full.startswith("aten::") and name in policies and "!" not in _schema(name, overload):
            device.register_autocast(full, policies[name])


def _schema(name: str, overload: str) -> str:
    try:
        return str(torch._C._get_schema(f"aten::{name}", overload))
    except RuntimeError:
        return "!"


def _allowed_fallbacks() -> set[str] | None:
    """Operators that may run on the host; None: all."""
    names = os.environ.get("PT_HPU_PLACE_ON_CPU", "")
    return {name for name in names.split(",") if name != "none"} if names else None


def read_faults(text: str, operators: Collection[str]) -> list[tuple[str, str]]:
    """(kind, operator) of each part of "kind:aten::name,kind:aten::name".

    Raises:
        ValueError: A kind that does not exist, or an operator that never reaches the card.
    """
    faults = [
        (kind, name) for kind, _, name in (part.partition(":") for part in text.split(",") if part)
    ]
    for kind, name in faults:
        if kind not in FAULTS:
            raise ValueError(
                f"HPU_SIMULATOR_FAULT: expected one of {', '.join(FAULTS)}, got {kind!r}"
            )
        if name not in operators:
            raise ValueError(
                f"HPU_SIMULATOR_FAULT: expected an operator of the card as aten::mm, got {name!r}"
            )
    return faults


def _start() -> None:
    tanh_gelu = os.environ.get("PT_HPU_FORCE_TANH_FOR_GELU", "1").lower() not in ("0", "false")
    device.configure(mode, tanh_gelu, _allowed_fallbacks(), table["stable_sort_may_fall_back"])
    names = [sorted(table[kind]) for kind in ("native", "not_native", "always_fallback")]
    operators = device.register_operators(*names, UPLOADED)
    _register_autocast()
    for kind, operator in read_faults(os.environ.get("HPU_SIMULATOR_FAULT", ""), operators):
        device.set_fault(kind, operator)


mode = int(read_variable("PT_HPU_LAZY_MODE"))
device = _load_device()
_start()

observers: list[object] = []  # of `watch`: called with (kind, bytes, flags)


def notice(kind: str, size: int, flags: str) -> None:
    """Tell everybody who watches that the host touched the device."""
    for observer in observers:
        observer(kind, size, flags)


def cut(why: str) -> None:
    """Close the lazy graph and count a collective; in lazy mode the host waits until the graph is
    launched."""
    device.flush(why)
    if mode:
        notice("join", 0, why)
    notice(why, 0, "")


device.observe(notice)
