"""A simulated Gaudi: real `hpu` tensors in host memory, and a record of what would be slow or missing on the card."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from .build import load_extension, why_unavailable
from .recorder import Seen, watch

PACKAGE = Path(__file__).resolve().parent / "package"  # belongs on PYTHONPATH of a subprocess

__all__ = ["PACKAGE", "Seen", "load", "load_extension", "watch", "why_unavailable"]


def load() -> ModuleType:
    """Make `habana_frameworks` importable and import `habana_frameworks.torch`; the environment is read now."""
    if str(PACKAGE) not in sys.path:
        sys.path.insert(0, str(PACKAGE))
    return importlib.import_module("habana_frameworks.torch")
