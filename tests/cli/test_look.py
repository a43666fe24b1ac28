"""`dino look`: the page of a run on hostile file names, on a convnet, on a simulated card, and in a
browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino.cli.look import main
from dino.errors import OptionError
from dino.models.registry import build_backbone
from dino.runtime.folder_lock import hold_folder
from tests import hpu_simulator
from tests.pages import Page, read_page
from tests.running import on_simulated_card, run_alone

HOSTILE = ("<script>alert(1)<", "a\"b'&.png", "line\nbreak.png", os.fsdecode(b"caf\xe9.png"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TITLES = [
    "Patch features as colors",
    "Nearest neighbors",
    "Map of the features",
    "Attention",
    "Outliers",
    "Near-duplicates",
]


def draw_pictures(folder: Path) -> Path:
    """Twelve pictures: six of fine noise, five of flat colors, and a copy of the first."""
    rng = np.random.default_rng(0)
    names = [f"{place:02}.png" for place in range(8)]
    names[2:2] = [f"{name.replace('/', '-')}.png".replace(".png.png", ".png") for name in HOSTILE]
    for place, name in enumerate(names):
        noise = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        flat = np.full((40, 40, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(noise if place % 2 else flat).save(folder / "pictures" / name)
    shutil.copy(folder / "pictures" / "00.png", folder / "pictures" / "copy.png")
    return folder / "pictures"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a training run leaves it, with a network whose features differ from image to
    image."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = build_backbone("vit_mini", patch_size=16, img_size=32)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    args = {"arch": "vit_mini", "patch_size": 16, "global_crops_size": 32}
    torch.save({"teacher": module.state_dict(), "args": args}, folder / "checkpoint.pth")
    (folder / "log.txt").write_text('{"train_loss": 2.5, "epoch": 0}\n')
    (folder / "recipe.yaml").write_text("arch: vit_mini\n")
    return folder


def words_of(folder: Path, *more: object) -> list[str]:
    path = folder / "pictures"
    images = path if path.exists() else draw_pictures(folder)
    words = ("--data_path", images, "--num_workers", 0, "--output_dir", folder / "out")
    return [str(word) for word in (*words, *more)]


def look(folder: Path, *more: object) -> Page:
    main(words_of(folder, "--device", "cpu", *more))
    return read_page(folder / "out" / "index.html")


def test_the_page_of_a_run_shows_everything_and_loads_nothing(
    run_folder: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    page = look(tmp_path, "--pretrained_weights", run_folder, "--json", report)
    assert page.texts.count("Curves") == page.texts.count("Settings") == 2
    assert [title for title in TITLES if page.texts.count(title) != 2] == []
    assert {"line\\nbreak.png", "caf\\xe9.png", "a\"b'&.png"} <= set(page.values("img", "alt"))
    assert "vit_mini, patches of 16 pixels, views of 32 pixels" in page.text
    found = json.loads(report.read_text())
    assert found["images"] == 13
    assert [name for name, _ in found["duplicates"][0]] == ["00.png", "copy.png"]
    assert found["duplicates"][0][1][1] == pytest.approx(1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html"}


def test_what_does_not_apply_is_left_out_with_a_word(tmp_path: Path) -> None:
    words = ("--random_weights", "--arch", "shufflenet_v2_x0_5", "--data_limit", 5)
    page = look(tmp_path, *words, "--shown_images", 2)
    assert "Left out: shufflenet_v2_x0_5 is not a vision transformer" in page.text
    assert "Curves" not in page.texts and "none, untrained" in page.texts
    assert "5 of 13, evenly spaced" in page.text
    assert "7 x 7 features" in page.text


def test_a_page_of_the_user_stays(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("mine")
    with pytest.raises(OptionError, match="index.html was not written by this command"):
        look(tmp_path, "--pretrained_weights", run_folder)
    assert (tmp_path / "out" / "index.html").read_text() == "mine"


def test_one_image_is_enough_and_a_page_of_ours_is_replaced(
    run_folder: Path, tmp_path: Path
) -> None:
    words = ("--pretrained_weights", run_folder / "checkpoint.pth", "--data_limit", 1)
    first = look(tmp_path, *words)
    with hold_folder(tmp_path / "out", first=True):  # as a training run that is at work
        second = look(tmp_path, *words)
    assert first.values("img", "src") == second.values("img", "src")
    assert set(second.values("img", "alt")) & {"00.png", "01.png"} == {"00.png"}


@pytest.mark.skipif(hpu_simulator.why_unavailable() is not None, reason="no simulated hpu")
def test_a_card_shows_what_the_cpu_shows(run_folder: Path, tmp_path: Path) -> None:
    weights = ("--pretrained_weights", run_folder, "--json", tmp_path / "report.json")
    cpu = look(tmp_path, *weights)
    expected = json.loads((tmp_path / "report.json").read_text())
    words = words_of(tmp_path, *weights, "--device", "hpu", "--lazy_mode", "true")
    result = run_alone(tmp_path, "dino.cli.look", *words, prepare=on_simulated_card)
    assert result.code == 0, result.text
    card = read_page(tmp_path / "out" / "index.html")
    assert card.values("img", "alt") == cpu.values("img", "alt") and "hpu" in card.text
    found = json.loads((tmp_path / "report.json").read_text())
    (names, values), (expected_names, expected_values) = (
        zip(*report["outliers"], strict=True) for report in (found, expected)
    )
    assert names == expected_names and values == pytest.approx(expected_values, abs=1e-5)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_draws_it(run_folder: Path, tmp_path: Path) -> None:
    look(tmp_path, "--pretrained_weights", run_folder)
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=400,900")
    target = tmp_path / "page.png"
    command = [str(CHROMIUM), *options, f"--user-data-dir={tmp_path / 'profile'}"]
    page = (tmp_path / "out" / "index.html").as_uri()
    subprocess.run(
        [*command, f"--screenshot={target}", page], check=True, capture_output=True, timeout=300
    )
    with Image.open(target) as picture:
        colors = picture.convert("RGB").getcolors(10**6)
    assert colors is not None and len(colors) > 100  # pictures and style were allowed
    assert max(colors)[1] in {(255, 255, 255), (246, 246, 243)}
