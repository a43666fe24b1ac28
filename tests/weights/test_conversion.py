"""What all converters share: where they write, what they adapt, and that what they wrote is what
they read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dino import checkpoint
from dino.cli import convert as commands
from dino.cli.convert import convert_huggingface, convert_onnx, convert_paddle, convert_timm
from dino.models.position import scale_position
from dino.models.registry import build_backbone
from dino.weights import convert
from tests.weights.conftest import equal_tensors

Command = Callable[..., tuple[int, str]]
CONVERTERS = {
    "paddle": (convert_paddle, "out.pdparams"),
    "timm": (convert_timm, "out.safetensors"),
    "hf": (convert_huggingface, "out"),
}
converters = pytest.mark.parametrize(("main", "name"), CONVERTERS.values(), ids=CONVERTERS.keys())


@converters
def test_what_is_converted_twice_is_a_checkpoint_as_before(
    weights: Path, tmp_path: Path, command: Command, reload: Any, main: Any, name: str
) -> None:
    code, text = command(main, weights, tmp_path / name, "--json", "-")
    assert code == 0 and "42 of 42 tensors matched; not part of it: head (1)\n" in text
    lost = f"{tmp_path / name} does not say how images are normalized: mean (0.4, 0.5, 0.6), std (0.2, 0.25, 0.3)"
    assert (lost in text) == (main is not convert_huggingface)
    assert json.loads(text.splitlines()[-1]) == {
        **{"output": str(tmp_path / name), "matched": 42, "arch": "vit_mini", "patch_size": 16},
        "image_size": [64, 64],
    }
    assert command(main, tmp_path / name, tmp_path / "back.pth")[0] == 0
    assert equal_tensors(reload(tmp_path / "back.pth"), reload(weights))
    state = checkpoint.load_file(tmp_path / "back.pth")
    assert state["args"] == {
        "arch": "vit_mini",
        "patch_size": 16,
        "in_chans": 3,
        "global_crops_size": 64,
    }


@converters
def test_inputs_are_adapted_where_flags_say_so(
    weights: Path, tmp_path: Path, command: Command, main: Any, name: str
) -> None:
    words = ("--in_chans", 1, "--patch_size", 8)
    code, text = command(main, weights, tmp_path / name, *words)
    assert code == 0, text
    assert (
        "first layer from 3 to 1 channels, summed" in text and "patches from 16 to 8 pixels" in text
    )
    assert command(main, tmp_path / name, tmp_path / "back.pth")[0] == 0
    state = checkpoint.load_file(tmp_path / "back.pth")
    assert state["teacher"]["backbone.patch_embed.proj.weight"].shape == (96, 1, 8, 8)
    assert state["teacher"]["backbone.pos_embed"].shape == (1, 65, 96)
    assert (state["args"]["in_chans"], state["args"]["patch_size"]) == (1, 8)


@converters
def test_other_sizes_have_the_position_embedding_that_the_network_would_use(
    weights: Path, tmp_path: Path, command: Command, lively: Any, main: Any, name: str
) -> None:
    code, text = command(main, weights, tmp_path / name, "--input_size", 96)
    assert code == 0 and "position embedding resampled to 96 x 96 pixels" in text
    assert command(main, tmp_path / name, tmp_path / "back.pth")[0] == 0
    found = checkpoint.load_file(tmp_path / "back.pth")["teacher"]["backbone.pos_embed"]
    assert torch.equal(found, scale_position(lively().pos_embed.detach(), 96, 96, 16))


@converters
def test_outputs_that_cannot_be_are_refused_before_work(
    weights: Path, tmp_path: Path, command: Command, main: Any, name: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.pth").mkdir()
    before = weights.read_bytes()
    odd, reason = (
        ("file", "is a file") if name == "out" else ("out.bin", "has an unsupported ending")
    )
    cases: dict[tuple[object, ...], str] = {
        (weights,): "name the output",
        (weights, tmp_path / "a.pth", "--json", tmp_path / "nowhere" / "a.json"): "--json",
        (
            weights,
            tmp_path / ("a.safetensors" if name == "out" else "a"),
        ): "has an unsupported ending",
        (weights, weights): "is the input",
        (weights, tmp_path / "folder.pth"): "is a folder",
        (weights, tmp_path / "file" / "x" / name): "cannot be written to",
        (weights, tmp_path / odd): reason,
        (weights, tmp_path / "a.pth", tmp_path / "b.pth"): "one word too many",
        (
            weights,
            tmp_path / "ours.pth",
            "--input_size",
            64,
            96,
        ): "--input_size must be square for .pth files (got 64 96)",
        (weights, tmp_path / "ours.pth", "--input_size", 8): "must be at least one patch",
        (
            weights,
            tmp_path / "ours.pth",
            "--input_size",
            64,
            64,
            64,
        ): "--input_size must be height and width, or one number for both (got 64 64 64)",
        (tmp_path / "gone.pth", tmp_path / "ours.pth"): "does not exist",
    }
    for words, reason in cases.items():
        code, text = command(main, *words)
        assert code == 2 and reason in text, text
        assert "Traceback" not in text
    assert weights.read_bytes() == before
    assert not (tmp_path / "ours.pth").exists() and not (tmp_path / "a.pth").exists()


@pytest.mark.parametrize(
    ("main", "name"), [CONVERTERS["paddle"], CONVERTERS["timm"]], ids=["paddle", "timm"]
)
def test_a_grid_that_would_be_read_as_another_is_not_written(
    weights: Path, tmp_path: Path, command: Command, main: Any, name: str
) -> None:
    target = tmp_path / name
    code, text = command(main, weights, target, "--input_size", 64, 144)
    assert code == 2 and "4 x 9 patches would be read as 6 x 6" in text and not target.exists()


def test_a_folder_of_an_oblong_grid_is_written_and_not_read_as_a_square(
    weights: Path, tmp_path: Path, command: Command
) -> None:
    assert command(convert_huggingface, weights, tmp_path / "hf", "--input_size", 64, 144)[0] == 0
    code, text = command(convert_huggingface, tmp_path / "hf", tmp_path / "back.pth")
    assert code == 2 and "must be stored for square images (got 64 x 144 pixels)" in text


def test_a_patch_size_means_nothing_to_a_network_without_patches(
    tmp_path: Path, command: Command
) -> None:
    torch.save(build_backbone("squeezenet1_1").state_dict(), tmp_path / "in.pth")
    words = ("--arch", "squeezenet1_1", "--patch_size", 8)
    for main, name in ((convert_timm, "out.pth"), (convert_onnx, "out.onnx")):
        code, text = command(main, tmp_path / "in.pth", tmp_path / name, *words)
        assert code == 2 and "--patch_size 8 means nothing to squeezenet1_1" in text


def test_a_graph_never_takes_the_place_of_the_weights(
    weights: Path, tmp_path: Path, command: Command
) -> None:
    before = weights.read_bytes()
    graph = tmp_path / "model.onnx"
    graph.write_bytes(before)
    for target, reason in (
        (weights, "has an unsupported ending"),
        (graph, "is the input"),
        (tmp_path / "a", "has an unsupported ending"),
    ):
        code, text = command(convert_onnx, graph if target == graph else weights, target)
        assert code == 2 and reason in text, text
    assert weights.read_bytes() == graph.read_bytes() == before


def test_a_folder_never_takes_the_place_of_the_weights_in_it(
    weights: Path, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "folder"
    assert command(convert_huggingface, weights, folder)[0] == 0
    code, text = command(convert_huggingface, folder / "model.safetensors", folder)
    assert code == 2 and "is the input, or holds it" in text


def test_a_file_that_reads_back_differently_is_an_error_and_the_one_before_it_stays(
    weights: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(network: Any, target: Path) -> None:
        tensors = {**network.tensors, "norm.bias": network.tensors["norm.bias"] + 1}
        torch.save(tensors, target)

    (tmp_path / "ours.pth").write_bytes(b"before")
    monkeypatch.setattr(convert, "write_checkpoint", write)
    code, text = command(convert_paddle, weights, tmp_path / "ours.pth")
    assert code == 2 and "WeightsError: ours.pth would differ from" in text and "norm.bias" in text
    assert (tmp_path / "ours.pth").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.pth", "weights.pth"]


def test_nan_is_refused_by_name(tmp_path: Path, command: Command, lively: Any) -> None:
    tensors = lively().state_dict()
    tensors["norm.bias"][0] = float("nan")
    torch.save(tensors, tmp_path / "in.pth")
    code, text = command(convert_timm, tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert code == 2 and "1 of 42 tensors hold NaN or infinite numbers: norm.bias" in text
    assert not (tmp_path / "out.safetensors").exists()


def test_without_a_file_the_published_weights_are_converted(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    code, text = command(
        convert_timm, "--output", tmp_path / "out.safetensors", "--arch", "vit_tiny"
    )
    assert code == 2 and "no weights are published for vit_tiny" in text


def test_the_vit_small_of_the_paper_goes_through_every_form_and_comes_back_to_the_bit(
    tmp_path: Path, command: Command, reload: Any
) -> None:
    words = ("--arch", "vit_small", "--random_weights", "--output", tmp_path / "0.pth")
    assert command(convert_paddle, *words)[0] == 0
    path = tmp_path / "0.pth"
    for main, name in (*CONVERTERS.values(), (convert_paddle, "back.pth")):
        code, text = command(main, path, tmp_path / name)
        assert code == 0 and f"{path} -> {tmp_path / name}: 150 of 150 tensors matched" in text
        path = tmp_path / name
    assert equal_tensors(reload(path), reload(tmp_path / "0.pth"))


def test_what_a_command_needs_is_not_imported_before_it_needs_it() -> None:
    heavy = {"torch", "transformers", "onnxruntime", "onnxscript", "numpy"}
    assert not heavy & vars(commands).keys()
