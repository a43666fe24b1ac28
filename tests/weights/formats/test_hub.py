"""A folder for the Hub is loaded by the library that its card names, with the lines that the card
shows, and the card says what the run says."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import dino
from dino.cli.convert import convert_to
from dino.cli.inspect import main as inspect
from dino.config import as_dict
from dino.data.config import CropConfig
from dino.models.config import BackboneConfig
from dino.training.config import TrainConfig
from dino.weights import convert
from tests.weights.conftest import equal_tensors

Command = Callable[..., tuple[int, str]]
to_hub = partial(convert_to, "hub")
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
RESNET = "timm:test_resnet"  # tiny
PRIVATE = ("/home/grace", "grace", "lab-7")


def save(path: Path, module: torch.nn.Module, **args: Any) -> Path:
    """Write a checkpoint of ours for images of 64 pixels."""
    args = {"in_chans": 3, "patch_size": 16, "global_crops_size": 64} | args
    normalization = {"mean": MEAN, "std": STD}
    state = {"teacher": module.state_dict(), "args": args, "normalisation": normalization}
    torch.save(state, path)
    return path


def save_run(folder: Path, module: torch.nn.Module) -> Path:
    """Write a run's folder, whose settings name a user, a host and paths."""
    config = TrainConfig(
        backbone=BackboneConfig(arch="vit_mini", patch_size=16),
        crops=CropConfig(global_crops_size=64),
    )
    places = {
        "data_path": "/home/grace/data",
        "output_dir": "/home/grace/x",
        "dist_url": "tcp://lab-7",
    }
    folder.mkdir()
    save(folder / "checkpoint.pth", module, **as_dict(config) | {"epochs": 3} | places)
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    identity = {"images": 1234, "global_batch": 64, "world": 2, "iteration": 38}
    resume = {"identity": identity, "scores": {"start": {"own_view": 8.0}}}
    torch.save({**state, "epoch": 2, "resume": resume}, folder / "checkpoint.pth")
    line = {"train_loss": 5.25, "train_wd": 0.1, "own_view": 41.5, "note": "/home/grace"}
    lines = [json.dumps({**line, "epoch": epoch}) for epoch in range(2)]
    (folder / "log.txt").write_text("\n".join(lines))
    return folder


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Run the card's lines in its folder, as the features of photo.jpg."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (90, 120, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / "photo.jpg", quality=95)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(code[1], namespace)
    (folder / "photo.jpg").rename(folder.parent / "photo.jpg")
    return namespace["features"]


def embed(weights: Path, photo: Path) -> torch.Tensor:
    return dino.embed(dino.load(weights), photo, device="cpu", num_workers=0).vectors


@pytest.fixture
def transformers() -> Any:
    library = pytest.importorskip("transformers")
    if not library.utils.is_torch_available():
        pytest.skip(f"transformers {library.__version__} refuses torch {torch.__version__}")
    return library


@pytest.mark.usefixtures("transformers")
def test_transformers_loads_a_runs_folder_and_its_card_tells_the_run(
    tmp_path: Path, command: Command, lively: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = save_run(tmp_path / "run", lively()), tmp_path / "hub"
    code, text = command(to_hub, run, folder, "--json", "-")
    assert code == 0, text
    assert f"{run} -> {folder}: 42 of 42 tensors matched" in text
    assert f"{folder} is loaded by transformers; choose a license in its README.md" in text
    assert f"to upload it: hf upload USER/NAME {folder}" in text
    names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    found = run_card(folder, monkeypatch)
    expected = embed(run, tmp_path / "photo.jpg")
    assert found.shape == (1, 96)
    # transformers' resizing rounds some levels differently
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert equal_tensors(dino.load(folder), dino.load(run))
    card = (folder / "README.md").read_text()
    for row in (
        f"| parameters | {sum(p.numel() for p in lively().parameters()):,} |",
        "| images | 1,234 |",
        "| epochs | 2 of 3 |",
        "| loss, mean of the last epoch | 5.2500 |",
        "| own views found, % | 8.0 | 41.5 | 2 |",
        "| mean, of levels from 0 to 1 | 0.4, 0.5, 0.6 |",
    ):
        assert f"\n{row}\n" in card
    assert not any(word in card.lower() for word in (*PRIVATE, str(tmp_path)))


def test_the_card_begins_with_metadata_of_the_hub_and_no_license(
    tmp_path: Path, command: Command, lively: Any
) -> None:
    assert command(to_hub, save_run(tmp_path / "run", lively()), tmp_path / "hub")[0] == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    start, metadata, body = card.split("---\n", 2)
    assert start == "" and body.startswith("\n# vit_mini, trained with DINO\n")
    assert yaml.safe_load(metadata) == {
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["dino", "self-supervised-learning"],
    }
    assert "# license: for you to choose" in metadata
    assert "It is the teacher of a run of DINO" in body


def test_timm_loads_what_it_has(
    tmp_path: Path, command: Command, lively: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = lively(RESNET)
    weights = save(tmp_path / "w.pth", module, arch=RESNET)
    code, text = command(to_hub, weights, tmp_path / "hub")
    assert code == 0 and f"{tmp_path / 'hub'} is loaded by timm" in text, text
    found = run_card(tmp_path / "hub", monkeypatch)
    photo = tmp_path / "photo.jpg"
    expected = embed(weights, photo)
    # timm resizes with Pillow, whose levels differ a little
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert torch.equal(embed(tmp_path / "hub", photo), expected)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "library_name: timm\n" in card and "- timm\n" in card
    assert "trained with DINO" not in card and "## Training" not in card
    assert f"| parameters | {sum(p.numel() for p in module.parameters()):,} |" in card
    assert "patch size" not in card


def test_what_no_other_library_has_is_loaded_by_this_one(
    tmp_path: Path, command: Command, lively: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"arch": "vit_micro", "pixel_range": [10.0, 3000.0]}
    weights = save(tmp_path / "w.pth", lively("vit_micro"), **args)
    code, text = command(to_hub, weights, tmp_path / "hub")
    assert code == 0 and f"{tmp_path / 'hub'} is loaded by dino-reference" in text, text
    assert "neither transformers nor timm loads this network: timm has no network like" in text
    found = run_card(tmp_path / "hub", monkeypatch)
    assert torch.equal(found, embed(weights, tmp_path / "photo.jpg"))
    backbone = dino.load(tmp_path / "hub")
    assert equal_tensors(backbone, dino.load(weights))
    assert backbone.pixel_range == (10.0, 3000.0) and backbone.normalization.mean == tuple(MEAN)
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| beyond 8 bits | levels 10 to 3000 become 0 to 255 first |" in card
    assert "this project, a folder for the Hub" in command(inspect, tmp_path / "hub")[1]
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["args"]["arch"] == "vit_micro"


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize("arch", ["vit_mini", RESNET])
def test_other_channels_have_lines_that_run_too(
    tmp_path: Path, command: Command, lively: Any, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    weights = save(tmp_path / "w.pth", lively(arch, in_chans=1), arch=arch, in_chans=1)
    state = torch.load(weights, weights_only=True)
    torch.save(state | {"normalisation": None}, weights)
    assert command(to_hub, weights, tmp_path / "hub")[0] == 0
    found = run_card(tmp_path / "hub", monkeypatch)
    with torch.inference_mode():
        expected = dino.load(weights)(torch.zeros(1, 1, 64, 64))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_range_of_levels_that_a_library_does_not_know_is_said(
    tmp_path: Path, command: Command, lively: Any
) -> None:
    weights = save(tmp_path / "w.pth", lively(), arch="vit_mini", pixel_range=[10.0, 3000.0])
    code, text = command(to_hub, weights, tmp_path / "hub")
    assert code == 0 and "hub does not say that the levels from 10 to 3000 of deep images" in text


def test_a_folder_that_holds_something_is_left_alone(
    weights: Path, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    assert command(to_hub, weights, folder)[0] == 0
    (folder / "README.md").write_text("edited")
    code, text = command(to_hub, weights, folder)
    assert code == 2 and f"--output {folder} must be a new folder: it holds files; name" in text
    assert (folder / "README.md").read_text() == "edited"


def test_what_fails_leaves_nothing(
    weights: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(convert, "_same_bits", lambda *_: False)
    code, text = command(to_hub, weights, tmp_path / "hub")
    assert code == 2 and "hub would differ from" in text and sorted(tmp_path.iterdir()) == before


def test_a_network_of_unknown_heads_is_refused(
    tmp_path: Path, command: Command, lively: Any
) -> None:
    tensors = {name: t for name, t in lively().state_dict().items() if "blocks.2" not in name}
    torch.save(tensors, tmp_path / "w.pth")
    code, text = command(to_hub, tmp_path / "w.pth", tmp_path / "hub")
    assert code == 2 and "the number of heads is unknown" in text
    assert not (tmp_path / "hub").exists()
