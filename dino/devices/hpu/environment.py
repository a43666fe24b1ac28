"""What the bridge reads once, when it is imported: variables, and the files of op lists. Needs no torch."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from multiprocessing.util import (
    Finalize,  # also runs where a child of multiprocessing ends, which atexit does not
)
from pathlib import Path

from dino.devices.hpu.mode import VARIABLE as LAZY
from dino.devices.hpu.mode import Mode
from dino.devices.hpu.software import Release
from dino.errors import DeviceError, OptionError

logger = logging.getLogger(__name__)

LISTS = ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "PT_HPU_AUTOCAST_FP32_OPS_LIST")
GELU = "PT_HPU_FORCE_TANH_FOR_GELU"
GRADIENTS = "PT_HPU_EAGER_ENABLE_GRADIENT_VIEW_LAYOUT_OPT"
# Where the bridge of the 1.24 line reads no op lists from (autocast_helpers.cpp), whatever a link is called.
REFUSED = frozenset("bin boot dev etc lib lost+found proc root run sbin srv sys usr var".split())
HARMLESS = {
    GELU: "takes the tanh form of GELU",
    GRADIENTS: "is slower in the gradients of convolutions",
}


def choose_variables(mode: Mode, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a run wants, always written out; what the user has set stays."""
    told = environment.get(LAZY, "0")
    return {
        LAZY: told
        if mode.lazy and told != "0"
        else str(int(mode.lazy)),  # 2 and 3 are lazy modes for debugging
        GELU: environment.get(GELU, "0"),  # the exact GELU of the paper's code
        GRADIENTS: environment.get(
            GRADIENTS, "1"
        ),  # the vendor's advice for vision; its default changed after 1.19
    }


def complete_environment(
    wanted: Mapping[str, str], *, imported: bool, release: Release | None
) -> None:
    """Set the variables for the bridge; where it is imported already, compare with what it found then.

    Args:
        wanted: By name; the mode itself is `choose_mode`'s business and not compared.
        imported: Whether the bridge is imported already.
        release: Of the bridge, for the defaults of what is not set.

    Raises:
        DeviceError: It was imported with other values, and that would not be harmless.
    """
    if not imported:
        os.environ.update(wanted)
        return
    defaults = {GELU: "1", GRADIENTS: str(int(release is not None and release <= (1, 19)))}
    late = [
        name
        for name, value in wanted.items()
        if name != LAZY and _normal(os.environ.get(name, defaults.get(name, ""))) != _normal(value)
    ]
    fatal = [f"{name}={wanted[name]}" for name in late if name not in HARMLESS]
    if fatal:
        raise DeviceError(
            f"the Habana bridge was imported before {' '.join(fatal)} was set",
            remedy="import dino before torch",
        )
    if late:
        effects = " and ".join(HARMLESS[name] for name in late)
        names = " ".join(f"{name}={wanted[name]}" for name in late)
        logger.warning(
            "the Habana bridge was imported before %s was set and %s; import dino before torch",
            names,
            effects,
        )


def _normal(value: str) -> str:
    return {"false": "0", "true": "1"}.get(value.lower(), value)


def read_own_lists(environment: Mapping[str, str]) -> dict[str, str]:
    """Contents of the op lists that the user's own variables name, by variable.

    Raises:
        OptionError: A file cannot be read; the bridge would take its own list in silence.
    """
    found = {}
    for name in LISTS:
        if environment.get(name):
            try:
                found[name] = Path(environment[name]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise OptionError(
                    f"{name}={environment[name]} cannot be read ({error})", remedy="unset it"
                ) from error
    return found


def give_lists(
    contents: Mapping[str, str], *, imported: bool, output_dir: str | None
) -> dict[str, str]:
    """Write op lists where the bridge reads them; gives the variables that name the files.

    Args:
        contents: By variable, bare names line by line.
        imported: Whether the bridge is imported already; then the files that it read must hold the same.
        output_dir: The run's output folder, if it has one.

    Raises:
        DeviceError: The bridge has read other lists, or would read them from no folder here.
    """
    if imported:
        if read_own_lists({name: os.environ.get(name, "") for name in contents}) != dict(contents):
            raise DeviceError(
                "the Habana bridge was imported before the op lists were given",
                remedy="import dino before torch",
            )
        return {}
    if not contents:
        return {}
    folder = make_list_folder(output_dir)
    files = {name: folder / f"{number}.txt" for number, name in enumerate(contents)}
    for name, file in files.items():
        file.write_text(contents[name], encoding="utf-8")
    return {name: str(file) for name, file in files.items()}


def make_list_folder(output_dir: str | None) -> Path:
    """A new folder that the bridge reads op lists from, of this process alone, deleted when it ends.

    Raises:
        DeviceError: There is none below TMPDIR, /tmp, the output folder or the current one.
    """
    for place in (os.environ.get("TMPDIR"), "/tmp", output_dir, os.curdir):
        if place and not is_refused(place):
            with contextlib.suppress(OSError):
                folder = Path(
                    tempfile.mkdtemp(prefix="dino_op_lists_", dir=os.path.realpath(place))
                )
                Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=0)
                return folder
    banned = " ".join(f"/{name}" for name in sorted(REFUSED))
    raise DeviceError(
        f"there is no folder to give the bridge its op lists in: it reads none below {banned}, and "
        "others cannot be written to",
        remedy="set TMPDIR to one that can",
    )


def is_refused(path: str) -> bool:
    """Whether the 1.24 line of the bridge reads no op lists from this place, by its real path."""
    return find_refused(os.path.realpath(path)) is not None


def find_refused(real_path: str) -> str | None:
    """The folder that keeps the 1.24 line of the bridge from reading op lists there, such as "/root"; None if none."""
    top = Path(real_path).parts[1:2]
    return f"/{top[0]}" if top and top[0] in REFUSED else None
