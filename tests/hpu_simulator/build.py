"""Compile `device.cpp` once a machine and load it; knows when that cannot work."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import torch

NAME = "_hpu_simulator"
SOURCE = Path(__file__).with_name("device.cpp")
OLDEST_TORCH = (2, 7)


def why_unavailable() -> str | None:
    """One line that says why this machine cannot simulate, or None."""
    if NAME in sys.modules:
        return None
    if sys.platform != "linux":
        return "the hpu simulator needs Linux"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return f"the hpu simulator needs torch {'.'.join(map(str, OLDEST_TORCH))}, this is {torch.__version__}"
    if torch.cuda.is_available():
        return "this machine has a GPU, and torch refuses a second kind of accelerator"
    if not _library().exists() and shutil.which("g++") is None:
        return "the hpu simulator has to be compiled, and there is no g++"
    return None


def load_extension() -> ModuleType:
    """The compiled module; several processes may ask at once."""
    if NAME not in sys.modules:
        reason = why_unavailable()
        if reason:
            raise ImportError(reason)
        library = _library()
        if not library.exists():
            _compile(library)
        loader = importlib.machinery.ExtensionFileLoader(NAME, str(library))
        spec = importlib.util.spec_from_loader(NAME, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        if not module.hide_cuda():
            raise ImportError("torch found a GPU, and refuses a second kind of accelerator")
        sys.modules[NAME] = module
    return sys.modules[NAME]


def _library() -> Path:
    """Where the compiled module of this source, torch and Python belongs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dino-tests"
    torch_home = Path(torch.__file__).resolve()  # environments that share a torch share this too
    identity = f"{torch.__version__} {sys.version} {torch_home}".encode() + SOURCE.read_bytes()
    return cache / f"{NAME}-{hashlib.sha256(identity).hexdigest()[:16]}.so"


def _compile(library: Path) -> None:
    """Build under a lock and another name, so that nobody ever loads half a file."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return
        unfinished = library.with_suffix(f".{os.getpid()}")
        abi = int(torch.compiled_with_cxx11_abi())
        command = [
            "g++",
            "-O1",
            "-std=c++20",
            "-shared",
            "-fPIC",
            "-w",
            str(SOURCE),
            "-o",
            str(unfinished),
        ]
        command += [f"-DTORCH_EXTENSION_NAME={NAME}", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
        torch_home = Path(torch.__file__).parent
        headers = (
            torch_home / "include",
            torch_home / "include/torch/csrc/api/include",
            sysconfig.get_paths()["include"],
        )
        command += [f"-I{folder}" for folder in headers]
        command += [f"-L{torch_home / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise ImportError(
                f"the hpu simulator does not compile: {error.stderr[-2000:]}"
            ) from error
        unfinished.rename(library)
