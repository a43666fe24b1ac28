"""Wheel and source distribution: what is installed from them runs from any folder, without the
repository."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys, setuptools.build_meta as b; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, source distribution), built from a copy: setuptools leaves folders where it
    builds."""
    # Not imported here: setuptools wants to come before whatever else has imported distutils.
    release = (
        importlib.metadata.version("setuptools") if importlib.util.find_spec("setuptools") else "0"
    )
    if int(release.split(".")[0]) < 77:
        pytest.skip(f"setuptools 77 is missing, which builds the wheel (there is {release})")
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, listed):
        if name.startswith(("dino/", "tests/conftest")) or "/" not in name:
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The scripts' folder of an environment that has the wheel and, through a .pth file, the
    packages at hand."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    (site / "at_hand.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--quiet",
    ]
    subprocess.run([*command, "--no-deps", "--no-index", str(built[0])], check=True)
    return folder / "bin"


def run(installed, *words, cwd, code=0):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(installed / words[0]), *words[1:]], cwd=cwd, env=kept, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_the_package_and_its_data_alone(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dino"}
    for name in (
        "presets/ops_bf16.txt",
        "presets/configs/vits16.yaml",
        "golden/loss.npz",
        "cli/__main__.py",
    ):
        assert f"dino/{name}" in names
    listed = set(
        subprocess.check_output(["git", "ls-files", "dino/"], cwd=ROOT, text=True).splitlines()
    )
    assert listed - set(names) == set(), "files of the package that the wheel lacks"


def test_the_source_distribution_builds_the_same_package(built):
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "requirements.txt", "dino/cli/__main__.py"} <= names
    assert "dino/presets/configs/ipu/vit_small_pod16.yaml" in names or any(
        "presets/configs" in n for n in names
    )


def test_commands_run_from_another_folder(installed, tmp_path):
    assert run(installed, "dino", "--version", cwd=tmp_path).startswith("dino ")
    printed = run(
        installed,
        "dino",
        "pretrain",
        "--config",
        "configs/vits16.yaml",
        "--print_config",
        cwd=tmp_path,
    )
    assert "arch: vit_small" in printed
    where = run(installed, "python", "-c", "import dino; print(dino.__file__)", cwd=tmp_path)
    assert str(installed.parent) in where


def test_op_lists_are_found_from_another_folder(installed, tmp_path):
    code = (
        "from dino.devices.config import PrecisionConfig; from dino.devices.op_lists import read_op_lists; "
        "print(len(read_op_lists(PrecisionConfig(hmp=True)).bf16))"
    )
    assert int(run(installed, "python", "-c", code, cwd=tmp_path)) > 5


def test_a_file_in_the_current_folder_comes_before_the_packages(installed, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "vits16.yaml").write_text("arch: vit_tiny\n")
    printed = run(
        installed,
        "dino",
        "pretrain",
        "--config",
        "configs/vits16.yaml",
        "--print_config",
        cwd=tmp_path,
    )
    assert "arch: vit_tiny" in printed


def test_weights_are_inspected_by_the_installed_command(installed, tmp_path):
    code = "import torch; torch.save({'teacher': {'w': torch.zeros(2)}}, 'a.pth')"
    run(installed, "python", "-c", code, cwd=tmp_path)
    assert "a.pth" in run(installed, "dino", "inspect", "a.pth", cwd=tmp_path)


def test_a_missing_torch_is_one_line(built, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    site = next((tmp_path / "bare" / "lib").glob("python*")) / "site-packages"
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(site)
    import numpy
    import yaml

    for module in (yaml, numpy):
        folder = Path(module.__file__).parent
        (site / folder.name).symlink_to(folder)
    (site / "numpy.libs").symlink_to(Path(numpy.__file__).parents[1] / "numpy.libs")
    python = str(tmp_path / "bare" / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "dino.cli", "knn", "--data_path", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith(
        "torch is not installed; pip install torch"
    )
    assert len(done.stderr.splitlines()) == 1
    assert subprocess.run([python, "-m", "dino.cli", "knn", "--help"], cwd=tmp_path).returncode == 0
