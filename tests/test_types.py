"""The package passes mypy --strict, and the few lines that are excused say why."""

import importlib.util
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
NEWEST = (2, 14)  # types of torch change with every release; older ones lack some
MOST_EXCUSED = 15
MISSING = [name for name in ("mypy", "yaml-stubs") if importlib.util.find_spec(name) is None]
EXCUSE = re.compile(r"# type: ignore\[[a-z-]+\]  # \w.+")


def torch_release():
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def excuses():
    """(place, comment) of every comment in the package that mypy obeys."""
    for path in sorted((ROOT / "dino").rglob("*.py")):
        for token in tokenize.generate_tokens(
            io.StringIO(path.read_text(encoding="utf-8")).readline
        ):
            if token.type == tokenize.COMMENT and re.match(
                r"#\s*(type:\s*ignore|mypy:)", token.string
            ):
                yield f"{path.relative_to(ROOT)}:{token.start[0]}", token.string


@pytest.mark.long
@pytest.mark.skipif(
    bool(MISSING), reason=f"no types: {', '.join(MISSING)} missing; see requirements-test.txt"
)
@pytest.mark.skipif(
    torch_release() < NEWEST,
    reason=f"no types: they are checked with torch {NEWEST[0]}.{NEWEST[1]} on",
)
def test_package_has_no_type_errors():
    words = ["--no-error-summary", "--no-color-output", "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_excused_line_gives_its_code_and_reason():
    assert [found for found in excuses() if not EXCUSE.fullmatch(found[1])] == []


def test_few_lines_are_excused():
    assert 0 < len(list(excuses())) <= MOST_EXCUSED
