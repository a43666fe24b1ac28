"""Not part of the bridge: which release this one is. HPU_SIMULATOR_RELEASE says 1.19 or 1.24, the
default.

What differs stands in `releases.json` and the lists of operators beside it. The release of each
table: 1.19.0, and the 1.24 line at commit bcc5172c of the bridge's public repository.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SIMULATOR = Path(__file__).resolve().parents[3]
DEFAULT = "1.24"


def read_table(release: str) -> dict[str, Any]:
    """What `releases.json` says of a release, its operators' base names under "native".

    Raises:
        ValueError: There is no such release.
    """
    tables = json.loads((SIMULATOR / "releases.json").read_text())
    if release not in tables:
        raise ValueError(
            f"HPU_SIMULATOR_RELEASE: expected one of {', '.join(tables)}, got {release!r}"
        )
    table, names = tables[release], set()
    for file in table["native"]:
        lines = (SIMULATOR / file).read_text().splitlines()
        words = {word for line in lines if not line.startswith("#") for word in line.split()}
        names |= {word for word in words if not word.startswith("-")}
        names -= {word[1:] for word in words if word.startswith("-")}
    return {**table, "native": names}


name = os.environ.get("HPU_SIMULATOR_RELEASE") or DEFAULT
table = read_table(name)


def read_variable(variable: str) -> str:
    """An environment variable's value in effect: what is set, else this release's default."""
    return os.environ.get(variable, table["defaults"].get(variable, ""))
