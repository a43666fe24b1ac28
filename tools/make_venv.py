"""Make the virtual environment and install requirements, without replacing a vendor's torch.

    python3 tools/make_venv.py .venv [requirements-torch.txt requirements.txt]

If the interpreter already has torch (a Gaudi container has the vendor's own build), the environment
sees the interpreter's packages. pip then does not install torch, torchvision or timm, because their
requirements on one another exclude the vendor's builds. Installed files are recorded after pip has
succeeded: an interrupted setup is resumed, and a complete one costs no time.
Exit codes: 0 done, 1 pip failed, 2 wrong input or something missing on this machine.
"""

import sys

# This is before the other imports, because older interpreters lack some of them.
if sys.version_info < (3, 10):
    sys.stderr.write(
        "make_venv: needs Python >= 3.10, this is %d.%d; set PYTHON to a newer one\n"
        % sys.version_info[:2]
    )
    sys.exit(2)

import json
import re
import site
import subprocess
from importlib import machinery, metadata, util
from pathlib import Path
from typing import NoReturn

FAMILY = ("torch", "torchvision", "torchaudio")
DEFAULTS = [Path(__file__).parents[1] / f"requirements{part}.txt" for part in ("-torch", "")]


def stop(text: object, *, code: int = 2) -> NoReturn:
    """Exit with a one-line message that names the value and the remedy."""
    sys.stderr.write(f"make_venv: {text}\n")
    sys.exit(code)


def find_version(name: str) -> str:
    """Return the version of an installed package from its metadata, or ""."""
    return next((package.version for package in metadata.distributions(name=name)), "")


def find_kept() -> dict[str, str]:
    """Return name -> version of this interpreter's torch packages, unimported; {} without torch."""
    installed = [name for name in FAMILY if getattr(util.find_spec(name), "origin", None)]
    return {name: find_version(name) for name in installed} if "torch" in installed else {}


def check_kept(kept: dict[str, str], lines: dict[str, str]) -> None:
    """Stop if torch or torchvision is missing next to the other, or older than its requirement."""
    owner = f"torch {kept.get('torch')} of {sys.executable} is kept, but"
    other = "or set PYTHON to an interpreter without torch"
    for name in set(FAMILY) & lines.keys() if kept else ():
        if name not in kept:
            stop(
                f"{owner} {name} is missing there; install the {name} built for this torch, {other}"
            )
        have, bound = (re.search(r"(\d+)\.(\d+)", text) for text in (kept[name], lines[name]))
        if have and bound and [*map(int, have.groups())] < [*map(int, bound.groups())]:
            stop(
                f"{owner} {name} {kept[name]} is older than the required {lines[name]}; "
                f"install a newer one, {other}"
            )


def create(target: Path, *, shared: bool) -> None:
    """Create or repair the environment; if `shared`, it sees this interpreter's packages."""
    words = ["--system-site-packages"] if shared else []
    if subprocess.run([sys.executable, "-m", "venv", *words, target]).returncode:
        remedy = "on Debian and Ubuntu: apt-get install python3-venv"
        stop(f"{sys.executable} -m venv failed, see above; {remedy}")
    # The option shows only the base interpreter's packages; if this interpreter is in an
    # environment itself, its own packages are elsewhere.
    hook = "".join(
        f"import site; site.addsitedir({folder!r})\n" for folder in site.getsitepackages() if shared
    )
    for packages in target.glob("lib/python*/site-packages"):
        (packages / "parent-environment.pth").write_text(hook, encoding="utf-8")


def install(target: Path, lines: dict[str, str], kept: dict[str, str]) -> None:
    """Install the requirements (package name -> line); leave `kept` and another package's `cv2`."""
    left = {*FAMILY, "timm"} if kept else set()
    folders = [*map(str, target.glob("lib/python*/site-packages")), *(sys.path if kept else [])]
    has_ours = any(metadata.distributions(name="opencv-python-headless", path=folders))
    if machinery.PathFinder.find_spec("cv2", folders) and not has_ours:
        left.add("opencv-python-headless")
    pins = [f"{name}=={version}" for name, version in kept.items() if version]
    if kept and find_version("numpy").startswith("1."):  # torch built for numpy 1 fails with 2
        pins.append("numpy<2")
    (target / "constraints.txt").write_text("\n".join(pins), encoding="utf-8")
    wanted = [line for name, line in lines.items() if name not in left]
    steps = [["-c", f"{target}/constraints.txt", *wanted]]
    # timm is installed by itself because it requires torchvision; of its other requirements, only
    # the hub is not ours as well.
    if kept and "timm" in lines:
        steps = [[*steps[0], "huggingface_hub"], ["--no-deps", lines["timm"]]]
    pip = [f"{target}/bin/python", *"-m pip install --disable-pip-version-check --no-input".split()]
    for words in steps:
        if subprocess.run([*pip, *words]).returncode:
            beside = f" while {', '.join(pins)} of the interpreter stays" if pins else ""
            text = f"pip could not install the requirements{beside}; fix the error above, then run again"
            stop(text, code=1)


def main(target: Path = Path(".venv"), *requirements: Path) -> None:
    """Make the environment, or complete an existing one."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in requirements or DEFAULTS}
    file, is_made = target / "made-with.json", (target / "bin" / "pip").exists()
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    is_own = target.exists() and target.samefile(sys.prefix)  # as after `source .venv/bin/activate`
    kept = record["kept"] if record and is_own else find_kept()
    prefix = Path(sys.prefix if kept else sys.base_prefix).resolve()
    home = f"{prefix} (Python {sys.version_info[0]}.{sys.version_info[1]}; {kept or 'no torch'})"
    origin = record.get("made_with", "something else" if kept else home)
    if is_made and not is_own and origin != home:
        stop(
            f"{target} was made with {origin}, this is {home}; "
            "set PYTHON to the former, or make clean to start over"
        )
    if texts.items() <= record.get("installed", {}).items():
        return
    rows = [row.split("#")[0].strip() for text in texts.values() for row in text.splitlines()]
    lines = {re.split(r"[^\w.-]", row)[0]: row for row in rows if row}
    check_kept(kept, lines)
    target.mkdir(parents=True, exist_ok=True)
    record = {"made_with": home, "kept": kept, "installed": {}} | record
    # Written first, so that an interrupted setup can be resumed.
    file.write_text(json.dumps(record), encoding="utf-8")
    if not is_made:
        create(target, shared=bool(kept))
    install(target, lines, kept)
    record["installed"] |= texts
    file.write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except (OSError, ValueError) as error:
        stop(error)
