"""A simulated Gaudi: real `hpu` tensors in host memory, and a record of what would be slow or missing on the card."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from .build import load_extension, why_unavailable
from .recorder import Seen, watch

PACKAGE = Path(__file__).resolve().parent / "package"  # belongs on PYTHONPATH of a subprocess

__all__ = ["PACKAGE", "Seen", "leave", "load", "load_extension", "watch", "why_unavailable"]


def load() -> ModuleType:
    """Make `habana_frameworks` importable and import `habana_frameworks.torch`; the environment is read now."""
    if str(PACKAGE) not in sys.path:
        sys.path.insert(0, str(PACKAGE))
    return importlib.import_module("habana_frameworks.torch")


def leave() -> NoReturn:
    """End a script whose last act may be a backward pass.

    Torch's thread for a device's backward passes lets go of what it held a moment after `backward` returns; where the
    interpreter is closing by then, it aborts the process.
    """
    sys.stdout.flush()
    os._exit(0)
