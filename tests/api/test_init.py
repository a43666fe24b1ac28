"""`import dino` is quick and changes nothing; its functions are there when they are first used."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dino
from dino import api

ROOT = Path(__file__).resolve().parents[2]


def run_python(text: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_import_dino_imports_neither_torch_nor_numpy() -> None:
    text = "import sys, dino; dino.__version__, dir(dino); print(sorted({'torch', 'numpy', 'PIL'} & {*sys.modules}))"
    assert run_python(text) == "[]\n"


def test_import_changes_neither_log_handlers_nor_signal_handlers() -> None:
    """After torch, whose own import is not ours to answer for."""
    text = """
import logging, signal, sys
import torch
def state():
    root = logging.getLogger()
    known = [signal.getsignal(name) for name in signal.valid_signals()]
    return root.handlers[:], root.level, known, torch.get_num_threads(), torch.get_rng_state().tolist(), sys.excepthook
before = state()
import dino
dino.load, dino.pretrain
print(state() == before)
"""
    assert run_python(text) == "True\n"


def test_every_public_name_is_there_and_documented() -> None:
    assert set(dino.__all__) == {*api.__all__, "__version__"}
    assert set(dino.__all__) <= set(dir(dino))
    for name in api.__all__:
        assert getattr(dino, name) is getattr(api, name)
        assert getattr(dino, name).__doc__, name


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse((ROOT / "dino" / "__init__.py").read_text(encoding="utf-8"))
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "dino.api"
    ]
    assert [alias.name for alias in found[0].names] == sorted(api.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dino' has no attribute 'embd'"):
        dino.embd  # noqa: B018


def test_package_metadata_takes_the_version_without_importing_torch(tmp_path: Path) -> None:
    """As setuptools reads it: from the syntax tree."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"version"' in text and 'version = { attr = "dino.__version__" }' in text
    (tmp_path / "dino").mkdir()
    source = (ROOT / "dino" / "__init__.py").read_text(encoding="utf-8")
    (tmp_path / "dino" / "__init__.py").write_text(
        f"import no_such_module\n{source.replace(FUTURE, '')}"
    )
    project = '[project]\nname = "x"\ndynamic = ["version"]\n[tool.setuptools.dynamic]\n'
    (tmp_path / "pyproject.toml").write_text(
        f'{project}version = {{ attr = "dino.__version__" }}\n'
    )
    # In a process of its own: setuptools wants to be imported before whatever else has imported
    # distutils.
    code = "from setuptools.config import pyprojecttoml as p; print(p.read_configuration('pyproject.toml')['project'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert f"'version': '{dino.__version__}'" in done.stdout, done.stderr


FUTURE = "from __future__ import annotations\n"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "10000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_openmp_spins_briefly_unless_the_user_chose_otherwise(own, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | own
    code = f"import dino, os; print(*map(os.environ.get, {names}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
