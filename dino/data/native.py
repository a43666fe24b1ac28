"""All crops of an image in one native call: built by a C++ compiler, kept in the cache folder.

The library of `crops.cpp` computes exactly the levels of `crops.cut_views`, so a run may continue
on a machine without it. It is optional: without a compiler, with DINO_NATIVE=0 or after any
failure torch makes the crops.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.resources
import logging
import os
import platform
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino.cache import find_cache_root, hold_lock, make_folder, read_own
from dino.data.crops import Box, CutViews, cut_views, resize_crop
from dino.errors import DinoError
from dino.files import atomic_write

logger = logging.getLogger(__name__)

SWITCH = "DINO_NATIVE"
COMPILERS = ("c++", "g++", "clang++")  # after $CXX
FLAGS = (
    "-std=c++17",
    "-O3",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",  # a fused multiply-add rounds once instead of twice
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
)
PATIENCE = 120  # seconds that a compiler may take
DIGEST = hashlib.sha256().digest_size  # bytes at the end of a library, over all before
OUTSIDE = 2  # what the library returns for a box that is not inside the image
# (height, width, channels) and (box, side) of the crops by which a library is compared with torch.
TRIALS: tuple[tuple[tuple[int, int, int], list[tuple[Box, int]]], ...] = (
    ((61, 83, 3), [((0, 0, 61, 83), 32), ((7, 5, 50, 37), 32), ((30, 41, 11, 9), 24)]),
    ((40, 23, 1), [((1, 1, 39, 22), 17), ((0, 0, 40, 23), 64)]),
    ((90, 31, 4), [((3, 0, 87, 31), 8), ((3, 1, 16, 16), 16)]),
)


class NativeError(DinoError):
    """The library cannot be built or used; torch makes the crops instead."""


class NativeCrops:
    """`crops.cut_views` by a library; pickled as its path."""

    def __init__(self, path: Path) -> None:
        """Load the library.

        Raises:
            NativeError: The file is missing, damaged, or not this user's alone.
        """
        self.path = path
        check_library(path)
        try:
            self.function: Any = ctypes.CDLL(str(path)).dino_cut_crops
        except (OSError, AttributeError) as error:
            raise NativeError(f"{path} cannot be loaded: {error}") from error
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        self.function.argtypes = (
            [pointer, number, number, number, ctypes.c_int64, pointer, number, pointer, pointer]
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        """Loader processes that do not inherit memory load the library again."""
        return reopen, (self.path,)

    def __call__(self, image: Tensor, crops: Sequence[tuple[Box, int]]) -> np.ndarray:
        """The same as `crops.cut_views`.

        Raises:
            ValueError: A box is not inside the image.
        """
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        rows = np.array([(*box, side) for box, side in crops], dtype=np.int32)
        ends = np.cumsum(rows[:, 4].astype(np.int64) ** 2 * pixels.shape[2]).tolist()
        out, left = np.empty(ends[-1], dtype=np.uint8), np.empty(len(rows), dtype=bool)
        failed = self.function(
            pixels.ctypes.data,
            *pixels.shape,
            pixels.strides[0],
            rows.ctypes.data,
            len(rows),
            out.ctypes.data,
            left.ctypes.data,
        )
        if failed == OUTSIDE:
            raise ValueError(f"a box is not inside the image of {image.shape[1:]} pixels: {crops}")
        if failed:  # no memory
            return cut_views(image, crops)
        for place in left.nonzero()[0].tolist():
            box, side = crops[place]
            view = resize_crop(image, box, (side, side)).permute(1, 2, 0).numpy()
            out[ends[place] - view.size : ends[place]] = view.reshape(-1)
        return out


def reopen(path: Path) -> CutViews:
    """The library of another process, or torch if it is gone."""
    try:
        return NativeCrops(path)
    except NativeError as error:
        logger.warning("crops by torch: %s", error)
        return cut_views


def choose_cut() -> CutViews:
    """The fastest way to crop on this machine; builds the library if necessary, and logs which."""
    if os.environ.get(SWITCH) == "0":
        logger.info("crops by torch: %s=0", SWITCH)
        return cut_views
    try:
        native = open_native()
    except NativeError as error:
        logger.info("crops by torch: %s", error)
        return cut_views
    logger.info("crops by the native library %s", native.path)
    return native


def open_native() -> NativeCrops:
    """Build the library unless it is in the cache folder, load it, and compare it with torch.

    Raises:
        NativeError: There is no compiler, it fails, the cache folder is not this user's alone, or
            the crops differ from torch's.
    """
    source = Path(str(importlib.resources.files("dino.data"))) / "crops.cpp"
    compiler = find_compiler()
    command = [compiler, *FLAGS, *(["-march=native"] if platform.machine() == "x86_64" else [])]
    key = "\n".join([source.read_text("utf-8"), *command, _run([compiler, "--version"]), _cpu()])
    try:
        folder = make_folder(find_cache_root() / "native")
        path = folder / f"crops-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
        # The processes of a run build one after another; all but the first find the library.
        with hold_lock(folder / "lock"):
            native = _load(path) or build(command, source, path)
    except OSError as error:
        raise NativeError(
            f"the cache folder cannot be used: {error}",
            remedy="set DINO_CACHE_DIR to a folder of your own",
        ) from error
    compare(native)
    return native


def find_compiler() -> str:
    """Path of $CXX or of the first usual compiler.

    Raises:
        NativeError: There is none.
    """
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise NativeError(
            f"no C++ compiler (looked for {' '.join(names)})", remedy="install one or set CXX"
        )
    return found


def build(command: Sequence[str], source: Path, path: Path) -> NativeCrops:
    """Compile `source` to `path`, and load it.

    Raises:
        NativeError: The compiler fails.
        OSError: The file cannot be written.
    """
    with atomic_write(path) as draft:
        _run([*command, str(source), "-o", str(draft)])
        code = draft.read_bytes()
        # Whatever follows the end of a library is ignored by the system's loader.
        draft.write_bytes(code + hashlib.sha256(code).digest())
        draft.chmod(stat.S_IRWXU)
    return NativeCrops(path)


def check_library(path: Path) -> None:
    """Check owner, mode and digest of a library: loading a damaged one could crash the process.

    Raises:
        NativeError: It is missing, damaged, or not this user's alone.
    """
    try:
        content = read_own(path)
    except OSError as error:
        raise NativeError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise NativeError(f"{path} is damaged")


def compare(native: CutViews) -> None:
    """Compare a library's crops with torch's, on drawn images.

    Raises:
        NativeError: They differ.
    """
    for shape, crops in TRIALS:
        drawn = np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)
        image = torch.from_numpy(drawn).permute(2, 0, 1)
        if not np.array_equal(native(image, crops), cut_views(image, crops)):
            raise NativeError("the native crops differ from those of this torch")


def _load(path: Path) -> NativeCrops | None:
    try:
        return NativeCrops(path)
    except NativeError as error:
        if path.exists():
            logger.info("%s; building it again", error)
        return None


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise NativeError(f"{command[0]} failed: {lines[0]}")
    return done.stdout


def _cpu() -> str:
    """Model and instruction sets of this machine's CPU, on which -march=native depends."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in text.splitlines() if line.startswith(names)}))
