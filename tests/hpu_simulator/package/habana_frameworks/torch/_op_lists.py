"""Not part of the bridge: autocast's lists of operators, read as this release reads them."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch

from ._release import SIMULATOR, table

DEFAULTS = json.loads((SIMULATOR / "autocast.json").read_text())  # the same in all releases


def choose_policies() -> dict[str, str]:
    """Operator name -> autocast policy; the lower list wins over the fp32 list, that one over the
    promote list."""
    lower = read_list("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", DEFAULTS["lower"])
    fp32 = read_list("PT_HPU_AUTOCAST_FP32_OPS_LIST", DEFAULTS["fp32"])
    return {
        **dict.fromkeys(DEFAULTS["promote"], "promote"),
        **dict.fromkeys(fp32, "fp32"),
        **{
            name: "lower_first" if name in DEFAULTS["lower_first_arg"] else "lower"
            for name in lower
        },
    }


def read_list(variable: str, default: list[str]) -> list[str]:
    """The names in the file that an environment variable points to, raw lines; the default where it
    is refused."""
    path, rules = os.environ.get(variable), table["op_lists"]
    if not path:
        return default
    if Path(path).resolve().parts[1] in rules["refused_folders"]:
        return _warn(
            f"{variable}: {path} is in a folder that is not allowed; the default list holds",
            default,
        )
    try:
        lines = Path(path).read_bytes().decode().removesuffix("\n").split("\n")
    except OSError:
        return _warn(f"{variable}: {path} cannot be read; the default list holds", default)
    return _keep_known(variable, lines) if rules["checks_names"] else lines


def _keep_known(variable: str, lines: list[str]) -> list[str]:
    """The lines that name an operator of torch; says on stderr which they are, and of each other
    one that it is not."""
    names = {
        full.removeprefix("aten::").split(".")[0] for full in torch._C._dispatch_get_all_op_names()
    }
    for number, line in enumerate(lines, start=1):
        if line not in names:
            print(
                f"[WARNING][PT_BRIDGE][AUTOCAST] {variable}: line {number}: unknown {line!r}",
                file=sys.stderr,
            )
    known = [line for line in lines if line in names]
    print(f"[DEBUG][PT_BRIDGE][AUTOCAST] {variable}: {' '.join(known)}", file=sys.stderr)
    return known


def _warn(text: str, default: list[str]) -> list[str]:
    """A later release says it on stderr, 1.19 in the bridge's log, for which a Python warning
    stands here."""
    if table["op_lists"]["checks_names"]:
        print(f"[WARNING][PT_BRIDGE][AUTOCAST] {text}", file=sys.stderr)
    else:
        warnings.warn(text, stacklevel=3)
    return default
