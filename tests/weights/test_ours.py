"""This project's weights are the same in both of its files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dino import checkpoint
from dino.cli.convert import convert_to
from dino.cli.inspect import main as inspect
from dino.models.config import BackboneConfig, WeightsConfig
from dino.weights.load import load_backbone
from dino.weights.ours import save_published
from tests.weights.conftest import equal_tensors

Command = Callable[..., tuple[int, str]]
to_safetensors = partial(convert_to, "safetensors")


def add_range(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["args"]["pixel_range"] = [100.0, 4000.0]
    torch.save(state, weights)


def test_a_conversion_keeps_tensors_size_normalization_and_range(
    weights: Path, tmp_path: Path, command: Command, reload: Any
) -> None:
    add_range(weights)
    out = tmp_path / "out.safetensors"
    code, text = command(to_safetensors, weights, out)
    lines = text.splitlines()
    assert code == 0 and len(lines) == 1, text
    assert lines[0] == f"{weights} -> {out}: 42 of 42 tensors matched; not part of it: head (1)"
    assert command(to_safetensors, out, tmp_path / "back.pth")[0] == 0
    for path in (out, tmp_path / "back.pth"):
        found = load_backbone(BackboneConfig(), WeightsConfig(pretrained_weights=str(path)))
        assert equal_tensors(found.module, reload(weights))
        assert (found.arch, found.patch_size, found.image_size) == ("vit_mini", 16, 64)
        assert found.normalization == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
        assert found.pixel_range == (100.0, 4000.0)
    code, text = command(inspect, out)
    assert code == 0 and f"{out}: backbone of this project\nteacher: vit_mini" in text


def test_it_holds_what_no_other_project_has(
    tmp_path: Path, command: Command, lively: Any, reload: Any
) -> None:
    module = lively("vit_micro")
    torch.save(module.state_dict(), tmp_path / "in.pth")
    words = (tmp_path / "in.pth", tmp_path / "out.safetensors", "--arch", "vit_micro")
    assert command(to_safetensors, *words)[0] == 0
    assert equal_tensors(reload(tmp_path / "out.safetensors"), module)


def test_sizes_must_be_square_in_both(weights: Path, tmp_path: Path, command: Command) -> None:
    for name in ("out.safetensors", "out.pth"):
        code, text = command(to_safetensors, weights, tmp_path / name, "--input_size", 64, 96)
        ending = Path(name).suffix
        assert code == 2 and f"--input_size must be square for {ending} files (got 64 96)" in text
        assert not (tmp_path / name).exists()


def test_a_runs_published_weights_say_the_same_as_safetensors(tmp_path: Path, lively: Any) -> None:
    teacher = {f"backbone.{name}": tensor for name, tensor in lively().state_dict().items()}
    args = {"arch": "vit_mini", "patch_size": 16, "local_crops_scale": (0.05, 0.4), "std": None}
    normalization = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    published = {"teacher": teacher, "epoch": 7, "args": args, "normalisation": normalization}
    path = tmp_path / checkpoint.TEACHER
    save_published(path.with_suffix(".safetensors"), published)
    checkpoint.save_file(path, published)
    found, expected = (
        load_backbone(BackboneConfig(), WeightsConfig(pretrained_weights=str(file)))
        for file in (path.with_suffix(".safetensors"), path)
    )
    assert equal_tensors(found.module, expected.module)
    assert found.normalization == expected.normalization == normalization
    names = safetensors.torch.load_file(path.with_suffix(".safetensors"))
    assert names.keys() == lively().state_dict().keys()
