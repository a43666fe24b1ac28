"""Lazy imports of libraries with other networks; our vision transformers need neither.

They may be missing next to a vendor's torch: pip cannot install timm without replacing that torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from dino.errors import OptionError

REMEDIES = {
    "timm": (
        "pip install --no-deps timm (next to a vendor's torch;"
        " elsewhere pip install -r requirements-torch.txt)"
    ),
    "torchvision": (
        "pip install -r requirements-torch.txt (next to a vendor's torch: the build for that torch)"
    ),
}


def open_library(name: str, *, purpose: str) -> ModuleType:
    """Import `timm` or `torchvision`.

    Args:
        name: One of `REMEDIES`.
        purpose: What needs it, for the error.

    Raises:
        OptionError: It cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError(
            f"{purpose} needs {name}, which cannot be imported ({error}): {REMEDIES[name]}"
        ) from error
