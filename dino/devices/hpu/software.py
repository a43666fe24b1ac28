"""Versions of the Gaudi software: releases and the torch of each one. Needs no torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import metadata, util

BRIDGE = "habana_frameworks.torch"
BRIDGE_PACKAGES = ("habana-torch-plugin", "habana_torch_plugin")

Release = tuple[int, int]

# Gaudi software release -> torch versions of its bridges. Sources: the vendor's support matrices,
# and container names for 1.20 and 1.24 (1.24.0 has 2.10, and 1.24.1 has 2.11).
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
    """Return major and minor number of a version or driver text, or None if it has none."""
    match = re.search(r"(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2])) if match else None


def find_version(*names: str) -> str | None:
    """Return the version of the first installed distribution, without importing it, or None."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_bridge_installed() -> bool:
    """Whether the Habana bridge itself is installed.

    Its namespace package alone does not count: all of the vendor's packages install that. Neither
    does a folder without code, which an uninstalled bridge may leave behind. The check may import
    the namespace package, but not the bridge.
    """
    if sys.modules.get(BRIDGE) is not None:
        return True
    try:
        spec = util.find_spec(BRIDGE)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def is_vendor_torch(version: str | None) -> bool:
    """Whether this is the vendor's build of torch, which alone has lazy mode.

    The rule is the bridge's own since 1.20: the local version begins with "git" or "hpu", as in
    2.6.0+hpu_1.21.2-76 and 2.10.0a0+gitc1e5ed4.
    """
    return (version or "").partition("+")[2].startswith(("git", "hpu"))
