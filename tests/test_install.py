"""The set-up: an environment is made completely or not believed in, and a vendor's torch is never
replaced.

The interpreters are bare virtual environments in a temporary folder that carry the metadata of a
release; the packages pip may choose from are stub wheels in a local folder that demand what the
real ones do. Those of torch are all later than the vendor's or the very ones that torchvision
demands, so that replacing is always possible and always visible.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "make_venv.py"
FILES = ("requirements-torch.txt", "requirements.txt")
INSTALL_FILES = [
    *FILES,
    "Makefile",
    ".ci/run",
    "environment.yml",
    "pyproject.toml",
    "requirements-test.txt",
    "requirements-docs.txt",
    "tools/make_venv.py",
]
CONDA_NAMES = {
    "torch": "pytorch",
    "opencv-python-headless": "opencv",
    "Pillow": "pillow",
    "PyYAML": "pyyaml",
}


class Container(NamedTuple):
    """What pip reads in a vendor's interpreter; `torchvision` is its version and the torch it
    demands."""

    torch: str
    torchvision: tuple[str, str]
    media_loader: str
    inferred: str


# Every habana-media-loader demands av==12.1.0 and tqdm, and pillow-simd before 1.24.1, pillow from
# then on (their
# metadata on the package index). The torch that a torchvision demands is that of the published
# wheel of its number.
CONTAINERS = {
    "1.19": Container("2.5.1a0+git354fc07", ("0.20.1a0+git0", "2.5.1"), "1.19.2.32", "torchvision"),
    "1.20": Container(
        "2.6.0+hpu_1.20.0-543.git4952fce", ("0.21.0a0+git0", "2.6.0"), "1.20.0.543", "torchvision"
    ),
    "1.21": Container(
        "2.6.0+hpu_1.21.2-76.gitabf798b", ("0.21.0+cpu", "2.6.0"), "1.21.2.76", "torchvision"
    ),
    "1.22": Container(
        "2.7.1+hpu.1.22.2.32.git6dbe0a4", ("0.22.1+cpu", "2.7.1"), "1.22.2.32", "torchvision"
    ),
    "1.23": Container("2.9.0+hpu.1.23.0.695", ("0.24.0+cpu", "2.9.0"), "1.23.0.695", "torchvision"),
    "1.24.0": Container("2.10.0a0+gitc1e5ed4", ("0.25.0+cpu", "2.10.0"), "1.24.0.1007", "nothing"),
    "1.24.1": Container(
        "2.11.0a0+git0000000",
        ("0.26.0+cpu", "2.11.0"),
        "1.24.1.482",
        "torch's local part, torchvision",
    ),
}
NEWEST = CONTAINERS["1.24.0"]

# Name -> version -> what the published package demands (Requires-Dist), and of what that needs, any
# version.
TENSORBOARD = [
    "absl-py>=0.4",
    "grpcio>=1.48.2",
    "markdown>=2.6.8",
    "numpy>=1.12.0",
    "packaging",
    "pillow",
]
TENSORBOARD += [
    "protobuf!=4.24.0,>=3.19.6",
    "setuptools>=41.0.0",
    "tensorboard-data-server<0.8.0",
    "werkzeug>=1.0.1",
]
BELOW = {"mypy": "2", "sphinx": "9", "myst-parser": "5"}  # packages whose ranges end before 99
OPENCV = {"4.11.0.86": ["numpy>=1.23.5"], "5.0.0.93": ["numpy>=2"]}
PACKAGES = {
    "torch": dict.fromkeys(
        ["99", *(container.torchvision[1] for container in CONTAINERS.values())], ["sympy>=1.13.3"]
    ),
    "torchvision": {"99": ["numpy", "torch==99", "pillow!=8.3.*,>=5.3.0"]},
    "timm": {"1.0.31": ["torch", "torchvision", "pyyaml", "huggingface_hub", "safetensors"]},
    "opencv-python-headless": OPENCV,
    "av": {"18.1.0": []},
    "faiss-cpu": {"1.15.1": ["numpy>=1.25", "packaging"]},
    "tensorboard": {"2.21.0": TENSORBOARD},
    "tensorboard-data-server": {"0.7.2": []},
    "wants-any-torch": {"1": ["torch", "torchvision"]},
}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not installed")


def read_requirements(*names):
    """Package name -> range of the requirement files, in which every line but comments is
    ``name>=bound[,<bound]``."""
    lines = [
        line for name in names for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
    ]
    found = [
        re.fullmatch(r"([\w-]+)(>=[\d.]+(?:,<[\d.]+)?)", line)
        for line in lines
        if not line.startswith("#")
    ]
    assert all(found), f"{names}: every line is a range name>=bound, got {lines}"
    return dict(match.groups() for match in found)


def write_wheel(folder, name, version, requires=()):
    """Write an empty wheel that pip accepts."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    with zipfile.ZipFile(
        folder / f"{info.removesuffix('.dist-info')}-py3-none-any.whl", "w"
    ) as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")


def write_installed(site_packages, name, version, requires=(), module=None):
    """Write a package as pip would have installed it: metadata, and a module that must never be
    imported."""
    info, module = (
        site_packages / f"{name.replace('-', '_')}-{version}.dist-info",
        site_packages / (module or name),
    )
    for folder in (info, module):
        folder.mkdir(parents=True, exist_ok=True)
    demands = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{demands}", encoding="utf-8"
    )
    (info / "INSTALLER").write_text("pip\n", encoding="utf-8")
    (module / "__init__.py").write_text(
        f"raise ImportError('{name} was imported')\n", encoding="utf-8"
    )
    files = (info / "METADATA", info / "INSTALLER", module / "__init__.py", info / "RECORD")
    lines = "".join(f"{file.relative_to(site_packages)},,\n" for file in files)
    (info / "RECORD").write_text(lines, encoding="utf-8")  # with it pip can uninstall


def write_container(site_packages, container):
    """Write the packages of a vendor's container that touch what this project asks for."""
    version, demanded = container.torchvision
    simd = "pillow" if container.media_loader.startswith("1.24.1") else "pillow-simd"
    write_installed(site_packages, "torch", container.torch, ["sympy>=1.13.3"])
    write_installed(
        site_packages,
        "torchvision",
        version,
        ["numpy", f"torch=={demanded}", "pillow!=8.3.*,>=5.3.0"],
    )
    write_installed(site_packages, "torchaudio", demanded + "+cpu", [f"torch=={demanded}"])
    write_installed(
        site_packages, "habana-media-loader", container.media_loader, [simd, "tqdm", "av==12.1.0"]
    )
    for name, version in {
        "av": "12.1.0",
        "numpy": "1.26.4",
        "sympy": "1.13.3",
        simd: "12.0",
        "tqdm": "4.66.5",
    }.items():
        write_installed(site_packages, name, version)


def read_versions(folder):
    """Name -> version of the packages whose metadata lies in the folder."""
    found = [info.stem.split("-", 1) for info in folder.glob("*.dist-info")]
    return {name.replace("_", "-").lower(): version for name, version in found}


def find_site_packages(environment):
    return next(environment.glob("lib/python*/site-packages"))


def find_base_interpreter():
    """The interpreter outside any virtual environment."""
    return (
        Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    )


def make_interpreter(folder, container=None):
    """Make a bare interpreter that has the packages of a container and no others; returns its
    path."""
    subprocess.run([find_base_interpreter(), "-m", "venv", "--without-pip", folder], check=True)
    if container:
        write_container(find_site_packages(folder), container)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Process environment in which pip knows the stub wheels only."""
    wheels = tmp_path_factory.mktemp("wheels")
    for name, versions in PACKAGES.items():
        for version, requires in versions.items():
            write_wheel(wheels, name, version, requires)
    demanded = [
        line for versions in PACKAGES.values() for lines in versions.values() for line in lines
    ]
    named = {
        re.match(r"[\w-]+", line).group().lower()
        for line in [*demanded, *read_requirements(*FILES, "requirements-test.txt")]
    }
    for name in named - {name.lower() for name in PACKAGES}:
        write_wheel(wheels, name, BELOW.get(name, "99"))
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith("PIP_")
    }
    return kept | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }


def make_venv(python, *words, env):
    """Run the script with an interpreter and return the finished process."""
    return subprocess.run(
        [python, SCRIPT, *map(str, words)], env=env, capture_output=True, text=True, timeout=120
    )


# Tells for each folder what pip would install into an interpreter that has the folder's packages:
# by `pip install -r`
# and by the script. One process for all, since pip takes longer to start than to resolve: each is a
# fork of it.
PRETEND = """
import os, runpy, sys, traceback, types
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import make_venv
import pip._internal.commands.install

def fork(act, *words):
    child, code = os.fork(), 0
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        act(*words)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stderr.flush()
    os._exit(code)

def pretend(words, report):
    sys.argv = ["pip", *words, "--quiet", "--dry-run", "--report", str(report)]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)

def run(command):
    code = 0
    if "venv" not in command:
        folder = Path(command[0]).parents[2]
        code = fork(pretend, command[3:], folder / f"venv{len(list(folder.glob('venv*.json')))}.json")
    return types.SimpleNamespace(returncode=code)

def examine(folder):
    sys.path.insert(0, str(folder / "packages"))
    make_venv.subprocess = types.SimpleNamespace(run=run)
    make_venv.main(folder / "venv", *folder.glob("demanding.txt"))
    pretend(["install", "-r", sys.argv[2]], folder / "plain.json")

for folder in map(Path, sys.argv[3:]):
    print(folder.name, fork(examine, folder), flush=True)
"""


def run_make(*words, env=os.environ):
    """Run make as a user would, untouched by a make that runs this suite."""
    dropped = ("PYTHON", "VENV", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL")
    env = {name: value for name, value in env.items() if name not in dropped}
    return subprocess.run(["make", *words], cwd=ROOT, env=env, capture_output=True, text=True)


def assert_stops(done, *words):
    """Exit code 2 and one line that holds the words."""
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


# A vendor's torch


def give_pip(environment):
    """Let an interpreter have this one's pip."""
    own = metadata.distribution("pip").locate_file("pip")  # importing pip would replace distutils
    (find_site_packages(environment) / "pip").symlink_to(str(own))


def write_case(folder, release, cv2=None):
    """Write a container's packages, and one that owns cv2; returns their names."""
    write_container(folder / "packages", CONTAINERS[release])
    if cv2:
        write_installed(folder / "packages", cv2, "4.9.0.80", module="cv2")
    return read_versions(folder / "packages").keys()


OWNERS = ("opencv-python", "opencv-contrib-python-headless")
CASES = {release: (release,) for release in CONTAINERS} | {
    owner: ("1.24.0", owner) for owner in OWNERS
}
DEMANDING = "demanding"  # 1.24.0 and a requirement that wants torchvision


@pytest.fixture(scope="module")
def resolved(tmp_path_factory, offline):
    """Case -> the names that are there, and what plain pip and each of the script's two calls of
    pip would install.

    Of the demanding one the error.
    """
    base = tmp_path_factory.mktemp("containers")
    folders = {case: base / case for case in [*CASES, DEMANDING]}
    there = {
        case: write_case(folder, *CASES.get(case, ("1.24.0",))) for case, folder in folders.items()
    }
    (folders[DEMANDING] / "demanding.txt").write_text("wants-any-torch\n", encoding="utf-8")
    python = make_interpreter(base / "bare")
    give_pip(base / "bare")
    command = [python, "-c", PRETEND, SCRIPT.parent, ROOT / "requirements.txt", *folders.values()]
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=300)
    if "no such option: --dry-run" in done.stderr:
        pytest.skip("the pip of this interpreter has no --dry-run (needs pip >= 22.2)")
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert codes == {case: str(int(case == DEMANDING)) for case in folders}, done.stderr
    reports = {
        case: map(read_report, sorted(folder.glob("*.json"))) for case, folder in folders.items()
    }
    return {case: (there[case], *reports[case]) for case in CASES} | {
        DEMANDING: done.stderr.splitlines()[-1]
    }


def read_report(path):
    """Name -> version of the packages in pip's report on what it would install."""
    packages = [
        item["metadata"] for item in json.loads(path.read_text(encoding="utf-8"))["install"]
    ]
    return {package["name"].replace("_", "-").lower(): package["version"] for package in packages}


@pytest.mark.parametrize("release", CONTAINERS)
def test_plain_pip_leaves_all_packages_of_a_container_alone(resolved, release):
    there, plain, *_ = resolved[release]
    assert not there & plain.keys()
    assert (plain["opencv-python-headless"], plain["faiss-cpu"]) == ("4.11.0.86", "1.15.1")


@pytest.mark.parametrize("release", CONTAINERS)
def test_make_venv_leaves_all_packages_of_a_container_alone(resolved, release):
    there, _, first, second = resolved[release]
    assert not there & first.keys()
    assert (first["opencv-python-headless"], first["huggingface-hub"]) == ("4.11.0.86", "99")
    assert second == {"timm": "1.0.31"}


@pytest.mark.parametrize("owner", OWNERS)
def test_make_venv_never_gives_cv2_a_second_owner(resolved, owner):
    there, _, first, _ = resolved[owner]
    assert owner in there
    assert "opencv-python-headless" not in first and "faiss-cpu" in first


def test_plain_pip_would_replace_torch_for_the_other_file(tmp_path, offline):
    """Why there are two files; and that the packages of these tests can show a torch that was
    replaced."""
    python = make_interpreter(tmp_path / "vendor", NEWEST)
    give_pip(tmp_path / "vendor")
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "-r",
        ROOT / "requirements-torch.txt",
    ]
    subprocess.run(command, env=offline, check=True, timeout=120)
    assert read_versions(find_site_packages(tmp_path / "vendor"))["torch"] == "2.10.0"


def test_packages_of_the_user_and_of_the_system_count_as_the_interpreters(tmp_path, offline):
    """They are seen through --system-site-packages alone; the user's folder stands for the
    system's."""
    env = offline | {"PYTHONUSERBASE": str(tmp_path / "user")}
    ask = [
        find_base_interpreter(),
        "-c",
        "import site; print(site.ENABLE_USER_SITE and site.getusersitepackages())",
    ]
    folder = subprocess.run(ask, env=env, check=True, capture_output=True, text=True).stdout.strip()
    if not Path(folder).is_absolute():
        pytest.skip("this interpreter reads no user package folder")
    write_container(Path(folder), NEWEST)
    target, env = tmp_path / ".venv", env | {"PYTHONPATH": str(SCRIPT.parent)}
    code = (
        "import make_venv, pathlib, sys; make_venv.create(pathlib.Path(sys.argv[1]), shared=True)"
    )
    subprocess.run([find_base_interpreter(), "-c", code, target], env=env, check=True)
    code = "import make_venv; print(*make_venv.find_kept().values())"
    seen = subprocess.run(
        [target / "bin" / "python", "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert seen.stdout.split() == [NEWEST.torch, NEWEST.torchvision[0], "2.10.0+cpu"]


def test_a_requirement_that_wants_another_torch_fails(resolved):
    assert (
        "pip could not install the requirements while torch==2.10.0a0+gitc1e5ed4, torchvision"
        in resolved[DEMANDING]
    )


def test_vendor_torch_without_torchvision_stops_before_pip(tmp_path, offline):
    python = make_interpreter(tmp_path / "vendor")
    write_installed(find_site_packages(tmp_path / "vendor"), "torch", NEWEST.torch)
    done = make_venv(python, tmp_path / ".venv", env=offline)
    words = ("install the torchvision built for this torch", "PYTHON")
    assert_stops(done, NEWEST.torch, str(tmp_path / "vendor"), *words)
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_stops_at_a_vendor_torch_without_torchvision(tmp_path, offline):
    python = make_interpreter(tmp_path / "vendor")
    write_installed(find_site_packages(tmp_path / "vendor"), "torch", NEWEST.torch)
    done = run_make("demo", f"PYTHON={python}", f"VENV={tmp_path / '.venv'}", env=offline)
    assert done.returncode == 2
    assert "install the torchvision built for this torch" in done.stderr
    assert "demo.py" not in done.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("torch", "torchvision", "word"),
    [
        ("2.4.1a0+git", "0.24.0", "torch 2.4.1a0+git is older"),
        ("2.10.0", "0.19.1", "torchvision 0.19.1 is older"),
    ],
)
def test_vendor_packages_older_than_required_stop_before_pip(
    tmp_path, offline, torch, torchvision, word
):
    python = make_interpreter(tmp_path / "vendor")
    for name, version in {"torch": torch, "torchvision": torchvision}.items():
        write_installed(find_site_packages(tmp_path / "vendor"), name, version)
    assert_stops(make_venv(python, tmp_path / ".venv", env=offline), word, "PYTHON")
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(("files", "kept"), [(["__init__.py"], "{'torch': ''}"), ([], "{}")])
def test_a_torch_without_metadata_is_kept_and_what_an_uninstalled_one_left_is_none(
    tmp_path, files, kept
):
    python = make_interpreter(tmp_path / "vendor")
    torch = find_site_packages(tmp_path / "vendor") / "torch"
    torch.mkdir()
    for file in files:
        (torch / file).touch()
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import make_venv; print(make_venv.find_kept())"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == kept


# Complete or not believed in


def test_environment_is_made_once_and_completed_later(tmp_path, offline):
    python = make_interpreter(tmp_path / "plain")
    hook = find_site_packages(tmp_path / "plain") / "no_venv.pth"
    hook.write_text("import sys; sys.modules['venv'] = None\n", encoding="utf-8")
    target, requirements = tmp_path / ".venv", tmp_path / "requirements.txt"
    requirements.write_text("no-such-package>=1\n", encoding="utf-8")
    failed = make_venv(python, target, requirements, env=offline)
    assert (
        failed.returncode == 2 and "apt-get install python3-venv" in failed.stderr.splitlines()[-1]
    )

    hook.unlink()
    failed = make_venv(python, target, requirements, env=offline)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("make_venv: pip could not install")

    shutil.copy(ROOT / "requirements.txt", requirements)
    (target / "witness").touch()
    files = [ROOT / "requirements-torch.txt", requirements]
    assert make_venv(python, target, *files, env=offline).returncode == 0
    without_packages = offline | {"PIP_FIND_LINKS": os.devnull}
    for interpreter in (python, target / "bin" / "python"):
        skipped = make_venv(interpreter, target, *files, env=without_packages)
        assert (skipped.returncode, skipped.stdout, skipped.stderr) == (0, "", "")

    done = make_venv(python, target, *files, ROOT / "requirements-test.txt", env=offline)
    assert done.returncode == 0, done.stderr
    versions = read_versions(find_site_packages(target))
    assert (versions["hypothesis"], versions["torch"], versions["torchvision"]) == (
        "99",
        "99",
        "99",
    )
    assert (target / "witness").exists()

    requirements.write_text("torch>=2.5\nno-such-package>=1\n", encoding="utf-8")
    assert make_venv(python, target, requirements, env=offline).returncode == 1


def test_environment_of_another_interpreter_is_left_alone(tmp_path, offline):
    vendor = make_interpreter(tmp_path / "vendor", NEWEST)
    target = tmp_path / ".venv"
    (target / "bin").mkdir(parents=True)
    (target / "bin" / "pip").touch()
    assert_stops(make_venv(vendor, target, env=offline), "something else", "make clean")
    record = {"made_with": "/opt/python (Python 3.10)", "kept": {}, "installed": {}}
    (target / "made-with.json").write_text(json.dumps(record))
    assert_stops(
        make_venv(vendor, target, env=offline),
        "/opt/python (Python 3.10)",
        NEWEST.torch,
        "make clean",
    )
    assert sorted(file.name for file in target.rglob("*")) == ["bin", "made-with.json", "pip"]


def test_python_older_than_3_10_is_turned_away_in_one_line(offline):
    code = f"import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert_stops(done, "needs Python >= 3.10", "is 3.9")


# The files


def test_requirements_are_ranges():
    assert read_requirements("requirements-torch.txt")["torch"] == ">=2.5"
    assert not read_requirements("requirements.txt").keys() & {
        "torch",
        "torchvision",
        "torchaudio",
        "timm",
    }
    assert {"pytest", "pytest-xdist", "hypothesis", "ruff", "submitit"} <= read_requirements(
        "requirements-test.txt"
    ).keys()


def test_environment_yml_asks_for_the_same_as_requirements_txt():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "dino"
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    expected = {
        CONDA_NAMES.get(name, name): bound for name, bound in read_requirements(*FILES).items()
    }
    found = dict(
        re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in environment["dependencies"]
    )
    assert found.pop("python") == ">=3.10"
    assert found == expected


def test_package_metadata_takes_its_dependencies_from_requirements_txt():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["dependencies", "version"]' in text
    assert 'dependencies = { file = ["requirements.txt"] }' in text
    optional = read_requirements("requirements-test.txt")
    assert f'submitit = ["submitit{optional["submitit"]}"]' in text
    assert f'parquet = ["pyarrow{optional["pyarrow"]}"]' in text
    assert f'huggingface = ["transformers{optional["transformers"]}"]' in text
    graphs = ", ".join(
        f'"{name}{optional[name]}"' for name in ("onnx", "onnxscript", "onnxruntime")
    )
    assert f"onnx = [{graphs}]" in text
    torch = ", ".join(
        f'"{name}{bound}"' for name, bound in read_requirements("requirements-torch.txt").items()
    )
    assert f"torch = [{torch}]" in text


@pytest.mark.parametrize("name", INSTALL_FILES)
def test_install_files_leave_the_choice_of_index_to_the_user(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|index-url|find-links|trusted-host", text)


@needs_make
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "demo",
            [
                "other-python tools/make_venv.py .venv requirements-torch.txt requirements.txt\n",
                ".venv/bin/python demo.py",
            ],
        ),
        (
            "test",
            [
                "other-python tools/make_venv.py .venv "
                "requirements-torch.txt requirements.txt requirements-test.txt requirements-docs.txt\n",
                "OMP_NUM_THREADS=1 .venv/bin/python -m pytest",
            ],
        ),
        (
            "docs",
            [
                "other-python tools/make_venv.py .venv requirements-torch.txt requirements.txt requirements-docs.txt\n",
                ".venv/bin/python -m sphinx -W ",
            ],
        ),
        ("help", ["make demo", "make test", "make docs", "make clean"]),
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
    (tmp_path / "made-with.json").touch()
    assert read_interpreter() == "python3"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pip").touch()
    assert read_interpreter() == f"{tmp_path}/bin/python"


def test_the_set_up_stays_small():
    """As much as 120 lines of 120 characters, in lines of 100."""
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 144


def test_ci_runs_the_test_command_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [
        line
        for line in script.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
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
