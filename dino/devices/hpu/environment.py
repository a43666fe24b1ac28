"""Input that the bridge reads once, at import: variables and op list files. Needs no torch."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from multiprocessing.util import Finalize  # unlike atexit, it also runs in child processes
from pathlib import Path

from dino.devices.hpu.mode import VARIABLE as LAZY
from dino.devices.hpu.mode import Mode
from dino.devices.hpu.software import Release
from dino.errors import DeviceError, OptionError
from dino.files import read_bounded

logger = logging.getLogger(__name__)

LISTS = ("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", "PT_HPU_AUTOCAST_FP32_OPS_LIST")
GELU = "PT_HPU_FORCE_TANH_FOR_GELU"
GRADIENTS = "PT_HPU_EAGER_ENABLE_GRADIENT_VIEW_LAYOUT_OPT"
# Top folders in which the 1.24 bridge refuses op lists; links are resolved (autocast_helpers.cpp).
REFUSED = frozenset("bin boot dev etc lib lost+found proc root run sbin srv sys usr var".split())
LARGEST = 1 << 20  # bytes of a list
HARMLESS = {
    GELU: "uses the tanh form of GELU",
    GRADIENTS: "is slower in the gradients of convolutions",
}


def choose_variables(mode: Mode, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a run needs; values that the user has set stay."""
    value = environment.get(LAZY, "0")
    is_lazy_already = mode.lazy and value != "0"  # 2 and 3 are lazy modes for debugging
    return {
        LAZY: value if is_lazy_already else str(int(mode.lazy)),
        # The exact GELU of the paper's code.
        GELU: environment.get(GELU, "0"),
        # The vendor's advice for vision models; the default changed after 1.19.
        GRADIENTS: environment.get(GRADIENTS, "1"),
    }


def complete_environment(
    wanted: Mapping[str, str], *, imported: bool, release: Release | None
) -> None:
    """Set the variables for the bridge; if it is imported already, check what it has read.

    Args:
        wanted: Values by name; the mode is not compared, because `choose_mode` checks it.
        imported: Whether the bridge is imported already.
        release: Release of the bridge, for the defaults of unset variables.

    Raises:
        DeviceError: The bridge was imported with other values, and the difference is not harmless.
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
        warning = (
            "the Habana bridge was imported before %s was set and %s; import dino before torch"
        )
        logger.warning(warning, names, effects)


def _normal(value: str) -> str:
    return {"false": "0", "true": "1"}.get(value.lower(), value)


def read_own_lists(environment: Mapping[str, str]) -> dict[str, str]:
    """Read the op lists that the user's own variables name; return their contents by variable.

    Raises:
        OptionError: A file cannot be read; the bridge would silently use its own list.
    """
    contents = {}
    for name in LISTS:
        if environment.get(name):
            try:
                contents[name] = read_bounded(Path(environment[name]), LARGEST).decode()
            except (OSError, UnicodeDecodeError) as error:
                raise OptionError(
                    f"{name}={environment[name]} cannot be read ({error})", remedy="unset it"
                ) from error
    return contents


def give_lists(
    contents: Mapping[str, str], *, imported: bool, output_dir: str | None
) -> dict[str, str]:
    """Write op lists where the bridge can read them; return the variables that name the files.

    Args:
        contents: Lists by variable, one name per line.
        imported: Whether the bridge is imported already; the files that it read must then match.
        output_dir: The run's output folder, if it has one.

    Raises:
        DeviceError: The bridge has read other lists, or reads lists from no writable folder.
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
    """Make a folder of this process from which the bridge reads op lists; it is deleted at the end.

    Raises:
        DeviceError: TMPDIR, /tmp, the output folder and the current folder are all unusable.
    """
    for parent in (os.environ.get("TMPDIR"), "/tmp", output_dir, os.curdir):
        if parent and not is_refused(parent):
            with contextlib.suppress(OSError):
                folder = Path(
                    tempfile.mkdtemp(prefix="dino_op_lists_", dir=os.path.realpath(parent))
                )
                Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=0)
                return folder
    banned = " ".join(f"/{name}" for name in sorted(REFUSED))
    raise DeviceError(
        "there is no folder from which the bridge could read its op lists: "
        f"it reads none below {banned}, and others are not writable",
        remedy="set TMPDIR to a writable folder outside of those",
    )


def is_refused(path: str) -> bool:
    """Whether the 1.24 bridge refuses op lists from this path, after resolving links."""
    return find_refused(os.path.realpath(path)) is not None


def find_refused(real_path: str) -> str | None:
    """Return the top folder in which the 1.24 bridge refuses op lists, such as "/root", or None."""
    top = Path(real_path).parts[1:2]
    return f"/{top[0]}" if top and top[0] in REFUSED else None
