"""`dino build-native`: compile the loaders' native crops and compare them with torch's."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.config import ReportConfig
from dino.errors import OptionError

ABOUT = Help(
    example="dino build-native",
)


@dataclass(frozen=True, kw_only=True)
class BuildNativeConfig:
    """Compile the native crops of the loaders into the cache folder, and compare them with torch's.

    A training run does the same when it first needs them; DINO_NATIVE=0 switches them off.
    """

    report: ReportConfig = ReportConfig()


def main(argv: Sequence[str] | None = None) -> None:
    """Build the library unless it is there, and print its path.

    Raises:
        NativeError: It cannot be built, or its crops differ from torch's.
        OptionError: DINO_NATIVE=0 is set.
    """
    config = parse(BuildNativeConfig, argv, ABOUT)

    from dino.data.native import SWITCH, open_native
    from dino.runtime.metrics import write_result

    if os.environ.get(SWITCH) == "0":
        raise OptionError(f"{SWITCH}=0 switches the native crops off", remedy=f"unset {SWITCH}")
    path = str(open_native().path)
    if config.report.json != "-":
        sys.stdout.write(f"{path} makes the same crops as torch\n")
    write_result(config.report.json, {"library": path})
