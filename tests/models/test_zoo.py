"""timm and torchvision are asked for where a network is theirs, and nowhere else."""

import ast
import sys
from pathlib import Path

import pytest
import torch

from dino.errors import OptionError
from dino.models.registry import build_backbone, check_arch
from dino.weights.read import read_weights

PACKAGE = Path(__file__).parents[2] / "dino"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with neither, as a container where timm was not installed is with the first."""
    for name in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("bare")
def test_our_vision_transformers_need_neither() -> None:
    assert build_backbone("vit_mini", img_size=32)(torch.zeros(1, 3, 32, 32)).shape == (1, 96)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("arch", "remedy"),
    [
        ("xcit_small_12_p16", r"needs timm, .*: pip install --no-deps timm"),
        ("timm:resnet18", r"needs timm, .*: pip install --no-deps timm"),
        ("resnet50", r"needs torchvision, .*: pip install -r requirements-torch\.txt"),
    ],
)
def test_another_network_names_what_to_install(arch: str, remedy: str) -> None:
    with pytest.raises(OptionError, match=rf"^`arch` {arch}.*{remedy}"):
        check_arch(arch)
    with pytest.raises(OptionError, match=remedy):
        build_backbone(arch)


@pytest.mark.usefixtures("bare")
def test_weights_of_timm_name_what_to_install() -> None:
    with pytest.raises(
        OptionError, match=r"^timm:resnet18 needs timm, .*: pip install --no-deps timm"
    ):
        read_weights("timm:resnet18")


def test_no_module_imports_them_when_it_is_imported_itself() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found += [
                f"{path.name}: {name}"
                for name in names
                if name.split(".")[0] in {"timm", "torchvision"}
            ]
    assert found == []
