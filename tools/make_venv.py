"""Make the project's virtual environment and install requirement files; a vendor's torch is never replaced.

    python3 tools/make_venv.py .venv requirements.txt [requirements-test.txt] [--dry-run]

Needs the standard library only. Where the interpreter already has torch (a Gaudi container carries the vendor's own
build), the environment sees the interpreter's packages and pip is held to exactly that torch, torchvision and
torchaudio. What is installed is recorded in the environment after pip has succeeded: an interrupted set-up is taken up
again, a complete one costs no time. Exit codes: 0 done, 1 pip failed, 2 wrong input or a machine that lacks something.
"""

import sys

# Before the other imports, some of which the interpreters turned away here do not have.
if sys.version_info < (3, 10):
    told = (sys.executable, *sys.version_info[:2])
    sys.stderr.write("make_venv: needs Python >= 3.10, %s is %d.%d; set PYTHON to a newer one\n" % told)
    raise SystemExit(2)

import argparse
import hashlib
import json
import os
import re
import shutil
import site
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

VENDOR_PACKAGES = ("torch", "torchvision", "torchaudio")
RECORD = "installed-requirements.json"
PARENT_PATHS = "parent-environment.pth"
PIP_OPTIONS = ("--disable-pip-version-check", "--no-input")


class SetupError(Exception):
    """The set-up cannot go on; the text names the value and the remedy in one line."""

    def __init__(self, text: str, *, code: int = 2) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Record:
    """What an environment was made with and what has been installed into it completely.

    Args:
        made_with: the interpreter, and its torch where it has one.
        pins: versions pip must keep, e.g. ``["torch==2.9.0a0+git"]``; empty without a vendor torch.
        installed: requirement file name -> SHA-256 of the text that was installed.
    """

    made_with: str
    pins: list[str]
    installed: dict[str, str]


# What the interpreter already has


def find_version(name: str) -> str | None:
    """Version of an installed package, found without importing it; None where there is none.

    Raises:
        SetupError: it can be imported but carries no metadata, so pip would install a second one over it.
    """
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        spec = util.find_spec(name)
    if spec is not None and spec.origin is not None:
        found = f"{name} at {spec.origin} has no .dist-info folder, so pip would install another one over it"
        raise SetupError(f"{found}; install it as a package, or set PYTHON to an interpreter without it")
    return None


def find_vendor_packages() -> dict[str, str]:
    """Name -> version of the torch family in this interpreter; empty where it has no torch."""
    if find_version("torch") is None:
        return {}
    versions = {name: find_version(name) for name in VENDOR_PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}


def is_older(version: str, bound: str) -> bool:
    """Whether a version comes before a plain bound such as "2.5"; 2.5.0a0 does, the local build 2.5.0+git does not."""
    parts = re.match(r"\d+(?:\.\d+)*", version)
    if parts is None:
        return True
    release, wanted = ([int(number) for number in text.split(".")] for text in (parts.group(), bound))
    length = max(len(release), len(wanted))
    release, wanted = (numbers + [0] * (length - len(numbers)) for numbers in (release, wanted))
    is_prerelease = re.match(r"[._-]?(a|b|c|rc|pre|dev)", version[parts.end() :]) is not None
    return release < wanted or (release == wanted and is_prerelease)


def read_lower_bounds(requirements: Sequence[Path]) -> dict[str, str]:
    """Package name -> lower bound of every ``name>=version`` line of the requirement files."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in requirements)
    return dict(re.findall(r"^([\w.-]+)\s*>=\s*(\d+(?:\.\d+)*)", text, flags=re.MULTILINE))


def check_vendor_packages(vendor: dict[str, str], bounds: dict[str, str]) -> None:
    """Stop before pip where keeping the interpreter's torch contradicts the requirements.

    Raises:
        SetupError: torchvision is missing beside a vendor torch, or one of them is older than the requirements allow.
    """
    if not vendor:
        return
    owner = f"torch {vendor['torch']} of {sys.executable} is kept"
    other = "or set PYTHON to an interpreter without torch"
    if "torchvision" not in vendor:
        raise SetupError(
            f"{owner}, but torchvision is missing in {sys.prefix} and pip would replace torch to install one; "
            f"install the torchvision built for this torch there, {other}"
        )
    for name, version in vendor.items():
        if name in bounds and is_older(version, bounds[name]):
            raise SetupError(
                f"{owner}, but {name} {version} in {sys.prefix} is older than the required {name}>={bounds[name]}; "
                f"upgrade it there or take a newer container, {other}"
            )


# The environment and its record


def read_record(target: Path) -> Record | None:
    """The record of an environment; None where there is none or it cannot be read."""
    try:
        return Record(**json.loads((target / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def save_record(target: Path, record: Record) -> None:
    """Write the record, whole or not at all."""
    unfinished = target / f"{RECORD}.part"
    unfinished.write_text(json.dumps(vars(record), indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, target / RECORD)


def create_environment(target: Path, *, share_packages: bool) -> None:
    """Create a virtual environment with pip; nothing is left of it when that fails.

    Args:
        target: a folder that does not exist yet.
        share_packages: whether it sees the interpreter's packages (``--system-site-packages``).

    Raises:
        SetupError: the interpreter cannot make environments.
    """
    remedy = "on Debian and Ubuntu: apt-get install python3-venv"
    if util.find_spec("venv") is None or util.find_spec("ensurepip") is None:
        raise SetupError(f"{sys.executable} has no venv or ensurepip module; {remedy}")
    command = [sys.executable, "-m", "venv", *(["--system-site-packages"] if share_packages else []), str(target)]
    complete = False
    try:
        made = subprocess.run(command, capture_output=True, text=True)
        complete = made.returncode == 0
    finally:
        if not complete:
            shutil.rmtree(target, ignore_errors=True)
    if not complete:
        reason = (made.stdout + made.stderr).strip().replace("\n", " ")
        raise SetupError(f"{' '.join(command)} failed: {reason}; {remedy}")
    if share_packages:
        share_parent_environment(target)


def share_parent_environment(target: Path) -> None:
    """Let an environment made from inside another one see that one's packages too, not the base interpreter's alone."""
    if sys.prefix == sys.base_prefix:
        return
    folders = [folder for folder in site.getsitepackages() if Path(folder).is_dir()]
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
    for packages in target.glob("lib/python*/site-packages"):
        (packages / PARENT_PATHS).write_text("".join(lines), encoding="utf-8")


def describe_interpreter(vendor: dict[str, str]) -> str:
    """One line that changes when an environment made by this interpreter no longer fits it."""
    home = sys.prefix if vendor else sys.base_prefix
    packages = "".join(f", {name} {version}" for name, version in vendor.items())
    return f"{Path(home).resolve()} (Python {sys.version_info.major}.{sys.version_info.minor}{packages})"


def is_active(target: Path) -> bool:
    """Whether this interpreter is the environment's own, as it is after ``source .venv/bin/activate``."""
    return target.exists() and Path(sys.prefix).resolve() == target.resolve()


def check_origin(target: Path, record: Record | None, found: Record) -> None:
    """Stop where an existing environment does not belong to this interpreter.

    Raises:
        SetupError: it was made with another interpreter or another torch, or without sight of the vendor's packages.
    """
    if not target.exists() or (record.made_with == found.made_with if record else not found.pins):
        return
    origin = record.made_with if record else "something else"
    remedy = "set PYTHON to the former, or make clean to start anew"
    raise SetupError(f"{target} was made with {origin}, this is {found.made_with}; {remedy}")


def open_environment(target: Path, requirements: Sequence[Path]) -> Record:
    """Make the environment, or take up the one that exists; an existing one is never removed or remade.

    Raises:
        SetupError: it belongs to another interpreter, or the interpreter's torch does not meet the requirements.
    """
    record, active = read_record(target), is_active(target)
    if record and active:
        return record
    vendor = find_vendor_packages()
    pins = [f"{name}=={version}" for name, version in vendor.items()]
    found = Record(made_with=describe_interpreter({} if active else vendor), pins=pins, installed={})
    check_vendor_packages(vendor, read_lower_bounds(requirements))
    if not active:
        check_origin(target, record, found)
    if not target.exists():
        create_environment(target, share_packages=bool(vendor))
    save_record(target, record or found)
    return record or found


# pip


def run_pip(target: Path, requirements: Sequence[Path], *, pins: list[str], report: bool = False) -> str:
    """Run ``pip install`` for the requirement files in an environment, held to the pins.

    Returns:
        "" after installing; with ``report`` nothing is installed, and it is pip's JSON report on what would be.

    Raises:
        SetupError: pip failed; its own lines are on the terminal.
    """
    constraints = target / "constraints.txt"
    constraints.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
    mode = ["--dry-run", "--quiet", "--report", "-"] if report else []
    files = [word for path in requirements for word in ("-r", str(path))]
    python = str(target / "bin" / "python")
    command = [python, "-m", "pip", "install", *PIP_OPTIONS, *mode, *files, "-c", str(constraints)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE if report else None, text=True)
    except OSError as error:
        raise SetupError(f"{target} has no working Python ({error}); make clean removes it") from error
    if done.returncode != 0:
        names = " and ".join(str(path) for path in requirements)
        kept = f" while {', '.join(pins)} of the interpreter stays" if pins else ""
        raise SetupError(f"pip could not install {names}{kept}; its reason is above; then run again", code=1)
    return done.stdout or ""


def install(target: Path, requirements: Sequence[Path]) -> None:
    """Bring the environment to the requirement files; does nothing where their present text is installed already."""
    record = open_environment(target, requirements)
    wanted = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in requirements}
    if wanted.items() <= record.installed.items():
        return
    run_pip(target, requirements, pins=record.pins)
    save_record(target, Record(made_with=record.made_with, pins=record.pins, installed=record.installed | wanted))


def list_missing(requirements: Sequence[Path]) -> list[str]:
    """What a fresh environment of this interpreter would get from pip, as ``name==version`` in alphabetical order."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "venv"
        record = open_environment(target, requirements)
        report = json.loads(run_pip(target, requirements, pins=record.pins, report=True))
    return sorted(f"{item['metadata']['name'].lower()}=={item['metadata']['version']}" for item in report["install"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run it; the return value is the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", type=Path, help="folder of the environment")
    parser.add_argument("requirements", type=Path, nargs="+", help="requirement files")
    parser.add_argument("--dry-run", action="store_true", help="print what pip would install, change nothing")
    options = parser.parse_args(arguments)
    try:
        if not options.dry_run:
            install(options.target, options.requirements)
            return 0
        print("\n".join(list_missing(options.requirements)))
    except (SetupError, OSError) as error:
        print(f"make_venv: {error}", file=sys.stderr)
        return error.code if isinstance(error, SetupError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
