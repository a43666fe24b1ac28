"""Every block of docs/python.md runs, in order and in one namespace, beside the files that it
names."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from dino.models.registry import build_backbone
from tests.api.tiny import write_pictures, write_splits

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README_BLOCK = re.compile(r"^    import dino\n(?:(?:    .*)?\n)+", re.MULTILINE)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror folder with weights of the published shape, which nothing is downloaded for."""
    folder = tmp_path_factory.mktemp("published")
    torch.save(
        build_backbone("vit_small", patch_size=16).state_dict(),
        folder / "dino_deitsmall16_pretrain.pth",
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ and birds/, the current folder's."""
    write_pictures(tmp_path / "photos", 6)
    for name, number in (("beach", 0), ("forest", 1)):
        with Image.open(tmp_path / "photos" / f"{number:03}.png") as picture:
            picture.save(tmp_path / "photos" / f"{name}.jpg")
    write_splits(tmp_path / "birds")
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(published))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_blocks(blocks: list[str], name: str) -> dict[str, object]:
    namespace: dict[str, object] = {}
    for number, text in enumerate(blocks):
        exec(compile(text, f"{name}, block {number}", "exec"), namespace)
    return namespace


def test_every_block_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    found = run_blocks(
        BLOCK.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8")), "docs/python.md"
    )
    assert found["features"].vectors.shape == (8, 384) and len(found["nearest"]) == 5
    assert found["vectors"].shape == (2, 384)
    assert found["scores"].keys() == {3, 10} and found["maps"][0].shape[0] == 3
    assert (
        len(found["result"].history) == 1 and (folder / "runs" / "halves" / "recipe.yaml").exists()
    )
    assert "vit_small 16 224" in capsys.readouterr().out
    assert (root.handlers, root.level) == before


def test_the_page_says_what_its_last_block_prints(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = BLOCK.findall((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))[-1]
    run_blocks(["import dino", block], "docs/python.md")
    assert capsys.readouterr().out.strip() == re.search(r"error\.value\)  # (.*)", block)[1]


def test_the_readme_shows_it_on_its_first_screen_and_links_the_page(folder: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = README_BLOCK.search("\n".join(readme.splitlines()[:40]) + "\n")
    assert first is not None
    found = run_blocks(["\n".join(line[4:] for line in first[0].splitlines())], "README.md")
    assert found["features"].vectors.shape == (8, 384)
    assert "(docs/python.md)" in readme
