"""Gaudi software by its versions: releases, and the torch that each was built for. Needs no torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import metadata, util

BRIDGE = "habana_frameworks.torch"
BRIDGE_PACKAGES = ("habana-torch-plugin", "habana_torch_plugin")

Release = tuple[int, int]

# Gaudi software release -> the torch versions that its bridges were built for: the vendor's support matrices, and the
# containers' names for 1.20 and for 1.24, whose 1.24.0 has 2.10 and whose 1.24.1 has 2.11.
TORCH_OF_RELEASE: Mapping[Release, tuple[Release, ...]] = {
    (1, 17): ((2, 3),),
    (1, 18): ((2, 4),),
    (1, 19): ((2, 5),),
    (1, 20): ((2, 6),),
    (1, 21): ((2, 6),),
    (1, 22): ((2, 7),),
    (1, 23): ((2, 9),),
    (1, 24): ((2, 10), (2, 11)),
}


def read_release(version: str | None) -> Release | None:
    """Major and minor number of a version or driver text; None where there are none."""
    found = re.search(r"(\d+)\.(\d+)", version or "")
    return (int(found[1]), int(found[2])) if found else None


def find_version(*names: str) -> str | None:
    """Version of the first of these distributions that is installed, without importing it."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_bridge_installed() -> bool:
    """Whether the Habana bridge itself is there; any part of the vendor's software brings the namespace around it.

    The namespace package may be imported for that, the bridge is not. A folder of that name without code, as an
    uninstalled bridge may leave it behind, is none.
    """
    if sys.modules.get(BRIDGE) is not None:
        return True
    try:
        found = util.find_spec(BRIDGE)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def is_vendor_torch(version: str | None) -> bool:
    """Whether this is the vendor's build of torch, which alone has lazy mode.

    By the bridge's own rule from 1.20 on: the local version begins with "git" or "hpu", as in 2.6.0+hpu_1.21.2-76 and
    2.10.0a0+gitc1e5ed4.
    """
    return (version or "").partition("+")[2].startswith(("git", "hpu"))
