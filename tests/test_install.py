"""The set-up: an environment is made completely or not believed in, and a vendor's torch is never replaced.

The interpreters are bare virtual environments in a temporary folder; the packages pip may choose from are stub wheels
in a local folder, nearly all of version 99, so that replacing an older torch is always possible and always visible.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "make_venv.py"
INSTALL_FILES = [
    "Makefile",
    ".ci/run",
    "environment.yml",
    "pyproject.toml",
    "requirements.txt",
    "requirements-test.txt",
    "tools/make_venv.py",
]
CONDA_NAMES = {"torch": "pytorch", "opencv-python-headless": "opencv", "Pillow": "pillow", "PyYAML": "pyyaml"}
VENDOR_PAIR = {"torch": "2.9.0a0+git", "torchvision": "0.24.0a0+git"}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not installed")


def read_requirements(name):
    """Package name -> lower bound of a requirement file in which every line is ``name>=bound``."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", line) for line in lines]
    assert all(found), f"{name}: every line is a range name>=bound, got {lines}"
    return dict(match.groups() for match in found)


def write_wheel(folder, name, version, requires=()):
    """Write an empty wheel that pip accepts."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    with zipfile.ZipFile(folder / f"{info.removesuffix('.dist-info')}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def write_installed(site_packages, packages):
    """Write packages as if installed: metadata for pip, and a module that must never be imported."""
    for name, version in packages.items():
        info = site_packages / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (site_packages / name).mkdir()
        (site_packages / name / "__init__.py").write_text(
            f"raise ImportError('{name} was imported')\n", encoding="utf-8"
        )


def find_base_interpreter():
    """The interpreter outside any virtual environment."""
    return Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"


def make_interpreter(folder, packages):
    """Make a bare interpreter that has the given packages and no others; returns its path."""
    subprocess.run([find_base_interpreter(), "-m", "venv", "--without-pip", folder], check=True)
    write_installed(next(folder.glob("lib/python*/site-packages")), packages)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Process environment in which pip knows the stub wheels only."""
    wheels = tmp_path_factory.mktemp("wheels")
    for name in read_requirements("requirements.txt") | read_requirements("requirements-test.txt"):
        requires = {"torchvision": ["torch==99"], "timm": ["torch", "torchvision"]}.get(name, [])
        write_wheel(wheels, name, "99", requires)
    write_wheel(wheels, "wants-any-torch", "1", ["torch", "torchvision"])
    write_wheel(wheels, "wants-newer-torch", "1", ["torch>=50"])
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped and not name.startswith("PIP_")}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}


@pytest.fixture
def script(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make_venv", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_venv", module)
    spec.loader.exec_module(module)
    return module


def make_venv(python, *words, env):
    """Run the script with an interpreter and return the finished process."""
    return subprocess.run([python, SCRIPT, *map(str, words)], env=env, capture_output=True, text=True, timeout=120)


def run_make(*words, env=os.environ):
    """Run make as a user would, untouched by a make that runs this suite."""
    dropped = ("PYTHON", "VENV", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")
    env = {name: value for name, value in env.items() if name not in dropped}
    return subprocess.run(["make", *words], cwd=ROOT, env=env, capture_output=True, text=True)


def list_names(dry_run):
    """Names of the packages a dry run would install."""
    assert dry_run.returncode == 0, dry_run.stderr
    return {line.split("==")[0] for line in dry_run.stdout.split()}


def assert_stops(done, *words):
    """Exit code 2 and one line that holds the words."""
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def skip_without_dry_run(done):
    """Skip where the interpreter's pip is older than 22.2."""
    if "no such option: --dry-run" in done.stderr:
        pytest.skip("the pip of this interpreter has no --dry-run (needs pip >= 22.2)")


# A vendor's torch


def test_vendor_pair_is_kept_with_the_packages_of_the_index(tmp_path):
    probe = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "tqdm"]
    reached = subprocess.run([sys.executable, "-m", "pip", "--retries", "0", *probe], capture_output=True, text=True)
    if reached.returncode != 0:
        pytest.skip(f"no package index within reach: {' '.join(reached.stderr.split()[-20:])}")
    python = make_interpreter(tmp_path / "vendor", VENDOR_PAIR)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = make_venv(python, tmp_path / ".venv", ROOT / "requirements.txt", "--dry-run", env=env)
    skip_without_dry_run(done)
    assert not {"torch", "torchvision", "triton"} & list_names(done)


def test_vendor_pair_is_kept_by_a_dry_run(tmp_path, offline):
    """The user's package folder stands for the system's: both are seen through --system-site-packages alone."""
    env = offline | {"PYTHONUSERBASE": str(tmp_path / "user")}
    ask = [find_base_interpreter(), "-c", "import site; print(site.ENABLE_USER_SITE and site.getusersitepackages())"]
    folder = subprocess.run(ask, env=env, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(folder).is_absolute():
        pytest.skip("this interpreter reads no user package folder")
    write_installed(Path(folder), VENDOR_PAIR)
    more = tmp_path / "more.txt"
    more.write_text("wants-any-torch\n", encoding="utf-8")
    words = (tmp_path / ".venv", ROOT / "requirements.txt", more, "--dry-run")
    done = make_venv(find_base_interpreter(), *words, env=env)
    skip_without_dry_run(done)
    names = list_names(done)
    wanted = {name.lower() for name in read_requirements("requirements.txt")} | {"wants-any-torch"}
    assert "wants-any-torch" in names
    assert names <= wanted - VENDOR_PAIR.keys()
    assert not (tmp_path / ".venv").exists()


def test_installing_leaves_the_vendor_pair_in_place(tmp_path, offline):
    python = make_interpreter(tmp_path / "vendor", VENDOR_PAIR)
    target = tmp_path / ".venv"
    done = make_venv(python, target, ROOT / "requirements.txt", env=offline)
    assert done.returncode == 0, done.stderr
    code = "from importlib.metadata import version as v; print(v('torch'), v('torchvision'), v('timm'))"
    seen = subprocess.run(
        [target / "bin" / "python", "-c", code], env=offline, capture_output=True, text=True, check=True
    )
    assert seen.stdout.split() == [*VENDOR_PAIR.values(), "99"]
    assert not list(target.glob("lib/python*/site-packages/torch*"))

    demanding = tmp_path / "demanding.txt"
    demanding.write_text("wants-newer-torch\n", encoding="utf-8")
    done = make_venv(python, target, demanding, env=offline)
    assert done.returncode == 1
    assert (
        "while torch==2.9.0a0+git, torchvision==0.24.0a0+git of the interpreter stays" in done.stderr.splitlines()[-1]
    )
    assert not list(target.glob("lib/python*/site-packages/torch*"))


def test_vendor_torch_without_torchvision_stops_before_pip(tmp_path, offline):
    python = make_interpreter(tmp_path / "vendor", {"torch": "2.9.0a0+git"})
    for more in ((), ("--dry-run",)):
        done = make_venv(python, tmp_path / ".venv", ROOT / "requirements.txt", *more, env=offline)
        assert_stops(
            done, "2.9.0a0+git", str(tmp_path / "vendor"), "install the torchvision built for this torch", "PYTHON"
        )
        assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_stops_at_a_vendor_torch_without_torchvision(tmp_path, offline):
    python = make_interpreter(tmp_path / "vendor", {"torch": "2.9.0a0+git"})
    done = run_make("demo", f"PYTHON={python}", f"VENV={tmp_path / '.venv'}", env=offline)
    assert done.returncode == 2
    assert "install the torchvision built for this torch" in done.stderr
    assert "demo.py" not in done.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("packages", "word"),
    [
        ({"torch": "2.4.1a0+git", "torchvision": "0.24.0"}, "torch 2.4.1a0+git"),
        ({"torch": "2.9.0a0+git", "torchvision": "0.19.1"}, "torchvision 0.19.1"),
    ],
)
def test_vendor_packages_older_than_required_stop_before_pip(tmp_path, offline, packages, word):
    python = make_interpreter(tmp_path / "vendor", packages)
    done = make_venv(python, tmp_path / ".venv", ROOT / "requirements.txt", env=offline)
    assert_stops(done, word, "older than the required", "PYTHON")
    assert not (tmp_path / ".venv").exists()


def test_torch_that_pip_cannot_see_stops(tmp_path, offline):
    python = make_interpreter(tmp_path / "vendor", VENDOR_PAIR)
    shutil.rmtree(next(tmp_path.glob("vendor/lib/python*/site-packages/torch-*.dist-info")))
    done = make_venv(python, tmp_path / ".venv", ROOT / "requirements.txt", env=offline)
    assert_stops(done, "torch at", ".dist-info", "PYTHON")


@pytest.mark.parametrize(
    ("version", "older"),
    [
        ("2.4.1", True),
        ("2.5.0a0+git", True),
        ("2.5", False),
        ("2.5.0+cpu", False),
        ("2.5.1a0+git", False),
        ("2.10", False),
    ],
)
def test_is_older_follows_the_order_of_versions(script, version, older):
    assert script.is_older(version, "2.5") is older


# Complete or not believed in


def test_environment_is_made_once_and_completed_later(tmp_path, offline):
    python = make_interpreter(tmp_path / "plain", {})
    target, requirements = tmp_path / ".venv", tmp_path / "requirements.txt"
    requirements.write_text("no-such-package>=1\n", encoding="utf-8")
    failed = make_venv(python, target, requirements, env=offline)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("make_venv: pip could not install")
    assert json.loads((target / "installed-requirements.json").read_text())["installed"] == {}

    shutil.copy(ROOT / "requirements.txt", requirements)
    (target / "witness").touch()
    assert make_venv(python, target, requirements, env=offline).returncode == 0
    without_packages = offline | {"PIP_FIND_LINKS": os.devnull}
    skipped = make_venv(python, target, requirements, env=without_packages)
    assert (skipped.returncode, skipped.stdout) == (0, "")
    by_itself = make_venv(target / "bin" / "python", target, requirements, env=without_packages)
    assert (by_itself.returncode, by_itself.stdout) == (0, "")

    done = make_venv(python, target, requirements, ROOT / "requirements-test.txt", env=offline)
    assert done.returncode == 0, done.stderr
    assert list(target.glob("lib/python*/site-packages/hypothesis-99.dist-info"))
    assert list(target.glob("lib/python*/site-packages/torch-99.dist-info"))
    assert (target / "witness").exists()

    requirements.write_text("torch>=2.5\nno-such-package>=1\n", encoding="utf-8")
    assert make_venv(python, target, requirements, env=offline).returncode == 1


def test_environment_of_another_interpreter_is_left_alone(tmp_path, offline):
    vendor = make_interpreter(tmp_path / "vendor", VENDOR_PAIR)
    target = tmp_path / ".venv"
    target.mkdir()
    (target / "witness").touch()
    assert_stops(make_venv(vendor, target, ROOT / "requirements.txt", env=offline), "something else", "make clean")
    record = {"made_with": "/opt/python (Python 3.10)", "pins": [], "installed": {}}
    (target / "installed-requirements.json").write_text(json.dumps(record))
    done = make_venv(vendor, target, ROOT / "requirements.txt", env=offline)
    assert_stops(done, "/opt/python (Python 3.10)", "torch 2.9.0a0+git", "make clean")
    assert (target / "witness").exists()


def test_environment_that_cannot_be_made_leaves_nothing(tmp_path, offline):
    python = make_interpreter(tmp_path / "plain", {})
    site_packages = next(tmp_path.glob("plain/lib/python*/site-packages"))
    hook = "import sys; sys.modules['ensurepip'] = None\n"
    (site_packages / "no_ensurepip.pth").write_text(hook, encoding="utf-8")
    done = make_venv(python, tmp_path / ".venv", ROOT / "requirements.txt", env=offline)
    assert_stops(done, "apt-get install python3-venv")
    assert not (tmp_path / ".venv").exists()


def test_environment_whose_making_fails_half_way_leaves_nothing(tmp_path, script, monkeypatch):
    target = tmp_path / ".venv"

    def fail_half_way(command, **_):
        (target / "bin").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 1, stdout="ensurepip failed\n", stderr="")

    monkeypatch.setattr(script.subprocess, "run", fail_half_way)
    with pytest.raises(script.SetupError, match="ensurepip failed; on Debian and Ubuntu: apt-get install python3-venv"):
        script.create_environment(target, share_packages=False)
    assert not target.exists()


def test_python_older_than_3_10_is_turned_away_in_one_line(offline):
    code = f"import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert_stops(done, "needs Python >= 3.10", "is 3.9")


# The files


def test_requirements_are_ranges():
    assert read_requirements("requirements.txt")["torch"] == "2.5"
    assert {"pytest", "pytest-xdist", "hypothesis", "ruff", "submitit"} <= read_requirements(
        "requirements-test.txt"
    ).keys()


def test_environment_yml_asks_for_the_same_as_requirements_txt():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "dino"
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    expected = {CONDA_NAMES.get(name, name): bound for name, bound in read_requirements("requirements.txt").items()}
    found = dict(line.split(">=") for line in environment["dependencies"])
    assert found.pop("python") == "3.10"
    assert found == expected


def test_package_metadata_takes_its_dependencies_from_requirements_txt():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["dependencies"]' in text
    assert 'dependencies = { file = ["requirements.txt"] }' in text
    optional = read_requirements("requirements-test.txt")
    assert f'submitit = ["submitit>={optional["submitit"]}"]' in text
    assert f'parquet = ["pyarrow>={optional["pyarrow"]}"]' in text
    assert f'huggingface = ["transformers>={optional["transformers"]}"]' in text
    graphs = ", ".join(f'"{name}>={optional[name]}"' for name in ("onnx", "onnxscript", "onnxruntime"))
    assert f"onnx = [{graphs}]" in text


@pytest.mark.parametrize("name", INSTALL_FILES)
def test_install_files_leave_the_choice_of_index_to_the_user(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|index-url|find-links|trusted-host", text)


@needs_make
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("demo", ["other-python tools/make_venv.py .venv requirements.txt\n", ".venv/bin/python demo.py"]),
        (
            "test",
            [
                "other-python tools/make_venv.py .venv requirements.txt requirements-test.txt\n",
                "OMP_NUM_THREADS=1 .venv/bin/python -m pytest",
            ],
        ),
        ("help", ["make demo", "make test", "make clean"]),
        ("clean", ["rm -rf .venv "]),
    ],
)
def test_make_targets(target, words):
    done = run_make("-n", target, "PYTHON=other-python")
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


@needs_make
def test_make_goes_on_with_the_interpreter_of_the_environment(tmp_path):
    def read_interpreter():
        lines = run_make("-n", "demo", f"VENV={tmp_path}").stdout.splitlines()
        return next(line.split()[0] for line in lines if "make_venv.py" in line)

    assert read_interpreter() == "python3"
    (tmp_path / "installed-requirements.json").touch()
    assert read_interpreter() == f"{tmp_path}/bin/python"


def test_ci_runs_the_test_command_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."', "make test"]


def test_licence_and_notice():
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for word in (
        "2104.14294",
        "facebookresearch/dino",
        "Habana",
        "anthonyhu/dino",
        "graphcore",
        "PASSL",
        "LARS",
        "timm",
    ):
        assert word in notice
    assert "No source code was copied from them." in notice
    assert "CC BY-NC 4.0" in notice
