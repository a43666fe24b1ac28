"""A simulated Gaudi: real `hpu` tensors in host memory, and a record of what would be slow or
missing on the card.

Two ways in. A test calls `load` (or `tests.running.on_simulated_card` in a run's own process) and
records with `watch`. A command needs its environment alone, as in a container; the compiled part is
built at the first import:

    PYTHONPATH=tests/hpu_simulator/package python main_dino.py --device hpu ...

Faults are put into the card by `HPU_SIMULATOR_FAULT`, read once when the bridge is imported. It
holds one or more `kind:aten::operator`, with commas between them, as
"wrong:aten::gelu,hang:aten::_softmax". An operator is named without overload and without the
underscore of its in-place form, and all its forms have the fault. Kinds:

    refuse    error "aten::gelu is not yet supported on HPU."
    wrong     its numbers are an eighth too large, integers one, booleans inverted
    hang      it never returns, and no signal that Python handles is handled
    oom       error "... Allocation failed for size::268435456 (256)MB ..."
    kill      the process ends by SIGKILL
    fallback  the host runs it: it is counted, and refused where PT_HPU_PLACE_ON_CPU does not allow
    it

Composite operators are named by their parts, since only those reach a device: `addmm` and not
`linear`.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from .build import load_extension, why_unavailable
from .phases import mark_phases
from .recorder import Seen, phase, watch

PACKAGE = Path(__file__).resolve().parent / "package"  # belongs on PYTHONPATH of a subprocess

__all__ = [
    "PACKAGE",
    "Seen",
    "leave",
    "load",
    "load_extension",
    "mark_phases",
    "phase",
    "watch",
    "why_unavailable",
]


def load() -> ModuleType:
    """Make `habana_frameworks` importable and import `habana_frameworks.torch`; the environment is
    read now."""
    if str(PACKAGE) not in sys.path:
        sys.path.insert(0, str(PACKAGE))
    return importlib.import_module("habana_frameworks.torch")


def leave() -> NoReturn:
    """End a script whose last act may be a backward pass.

    Torch's thread for a device's backward passes lets go of what it held a moment after `backward`
    returns; where the interpreter is closing by then, it aborts the process.
    """
    sys.stdout.flush()
    os._exit(0)
