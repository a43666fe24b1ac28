"""Not part of the bridge: the simulated device behind this package and what the environment said at import."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import torch

SIMULATOR = Path(__file__).resolve().parents[3]

# The number operands that lazy mode uploads as tensors; every other number is part of the graph.
UPLOADED = [f"{op}.other" for op in ("add", "sub", "mul", "div", "eq", "ne", "lt", "le", "gt", "ge")]
UPLOADED += ["add.alpha", "addcmul.value", "addcdiv.value"]

# Missing in the bridge although their parts are there, or although a name in the list looks the same.
ALWAYS_FALLBACK = ["_foreach_norm", "_upsample_bicubic2d_aa", "_upsample_bicubic2d_aa_backward", "histc", "renorm"]

LOWER = """addmm addbmm batch_norm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
dot dropout feature_dropout group_norm instance_norm layer_norm leaky_relu linear matmul mean mm mul mv softmax
log_softmax scaled_dot_product_attention""".split()
FP32 = """acos addcdiv asin atan2 bilinear binary_cross_entropy binary_cross_entropy_with_logits cdist cosh
cosine_embedding_loss cosine_similarity cross_entropy_loss dist div divide embedding embedding_bag erfinv exp expm1
hinge_embedding_loss huber_loss kl_div l1_loss log log10 log1p log2 logsumexp margin_ranking_loss mse_loss
multi_margin_loss multilabel_margin_loss nll_loss pdist poisson_nll_loss pow reciprocal renorm rsqrt sinh
smooth_l1_loss soft_margin_loss softplus tan topk triplet_margin_loss truediv true_divide""".split()
PROMOTE = "add addcmul addcdiv cat div exp mul pow sub iadd truediv stack".split()
FAULTS = ("refuse", "wrong", "hang", "oom", "kill", "fallback")  # in HPU_SIMULATOR_FAULT
FIRST_ONLY = {"layer_norm", "group_norm", "instance_norm", "batch_norm"}


def _load_device() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_hpu_simulator_build", SIMULATOR / "build.py")
    assert spec is not None and spec.loader is not None
    build = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(build)
    return build.load_extension()


def read_list(variable: str, default: list[str]) -> list[str]:
    """The names in the file that an environment variable points to, raw lines as the bridge reads them."""
    path = os.environ.get(variable)
    if path is None:
        return default
    try:
        return Path(path).read_bytes().decode().removesuffix("\n").split("\n")
    except OSError:
        warnings.warn(f"{variable}: {path} cannot be read; the default list holds", stacklevel=2)
        return default


def choose_policies() -> dict[str, str]:
    """Operator name -> autocast policy; the lower list wins over the fp32 list, that one over the promote list."""
    lower = read_list("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", LOWER)
    fp32 = read_list("PT_HPU_AUTOCAST_FP32_OPS_LIST", FP32)
    return {
        **dict.fromkeys(PROMOTE, "promote"),
        **dict.fromkeys(fp32, "fp32"),
        **{name: "lower_first" if name in FIRST_ONLY else "lower" for name in lower},
    }


def _register_autocast() -> None:
    policies = choose_policies()
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.removeprefix("aten::").partition(".")
        if full.startswith("aten::") and name in policies and "!" not in _schema(name, overload):
            device.register_autocast(full, policies[name])


def _schema(name: str, overload: str) -> str:
    try:
        return str(torch._C._get_schema(f"aten::{name}", overload))
    except RuntimeError:
        return "!"


def _is_true(variable: str, default: str) -> bool:
    return os.environ.get(variable, default).lower() not in ("0", "false")


def _allowed_fallbacks() -> set[str] | None:
    """Operators that may run on the host; None: all."""
    names = os.environ.get("PT_HPU_PLACE_ON_CPU", "")
    return {name for name in names.split(",") if name != "none"} if names else None


def read_faults(text: str, operators: Collection[str]) -> list[tuple[str, str]]:
    """(kind, operator) of each part of "kind:aten::name,kind:aten::name".

    Raises:
        ValueError: A kind that does not exist, or an operator that never reaches the card.
    """
    faults = [(kind, name) for kind, _, name in (part.partition(":") for part in text.split(",") if part)]
    for kind, name in faults:
        if kind not in FAULTS:
            raise ValueError(f"HPU_SIMULATOR_FAULT: expected one of {', '.join(FAULTS)}, got {kind!r}")
        if name not in operators:
            raise ValueError(f"HPU_SIMULATOR_FAULT: expected an operator of the card as aten::mm, got {name!r}")
    return faults


def _start() -> None:
    words = [line for line in (SIMULATOR / "native_ops.txt").read_text().splitlines() if not line.startswith("#")]
    device.configure(mode, _is_true("PT_HPU_FORCE_TANH_FOR_GELU", "1"), _allowed_fallbacks())
    operators = device.register_operators(" ".join(words).split(), ALWAYS_FALLBACK, UPLOADED)
    _register_autocast()
    for kind, operator in read_faults(os.environ.get("HPU_SIMULATOR_FAULT", ""), operators):
        device.set_fault(kind, operator)


mode = int(os.environ.get("PT_HPU_LAZY_MODE", "1"))
device = _load_device()
_start()

observers: list[object] = []  # of `watch`: called with (kind, bytes, flags)


def notice(kind: str, size: int, flags: str) -> None:
    """Tell everybody who watches that the host touched the device."""
    for observer in observers:
        observer(kind, size, flags)


def cut(why: str) -> None:
    """Close the lazy graph and count a collective."""
    device.flush(why)
    notice(why, 0, "")


device.observe(notice)
