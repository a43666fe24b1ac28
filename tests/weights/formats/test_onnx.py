"""The graph gives the network's features at any batch size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino.cli.convert import convert_onnx
from dino.errors import OptionError, WeightsError
from dino.models.registry import build_backbone
from dino.weights.formats import onnx

Command = Callable[..., tuple[int, str]]


def run_graph(path: Path, images: torch.Tensor) -> np.ndarray:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    return session.run(None, {"images": images.numpy()})[0]


def test_features_are_the_networks_at_two_batch_sizes_and_no_square(
    weights: Path, tmp_path: Path, command: Command, lively: Any
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    code, text = command(
        convert_onnx, weights, tmp_path / "model.onnx", "--input_size", 96, 64, "--json", "-"
    )
    assert code == 0 and "traced" not in text, text
    module, lines = lively(), text.splitlines()
    assert (
        lines[-2] == f"{tmp_path / 'model.onnx'}: 42 of 42 tensors matched, for images [3, 96, 64]"
    )
    assert 0 < json.loads(lines[-1])["difference"] < 1e-5
    for batch in (1, 5):
        images = torch.randn(batch, 3, 96, 64)
        with torch.inference_mode():
            expected = module(images).numpy()
        assert (
            np.abs(run_graph(tmp_path / "model.onnx", images) - expected).max()
            < 1e-4 * np.abs(expected).max()
        )
    assert onnx.compare(module, images, tmp_path / "model.onnx") < 1e-5
    torch.nn.init.constant_(module.norm.bias, 3.0)
    with pytest.raises(WeightsError, match="must equal the network's within 1e-04"):
        onnx.compare(module, images, tmp_path / "model.onnx")


@pytest.mark.parametrize("arch", ["squeezenet1_1", "resnet18"])
def test_other_backbones_and_channels(tmp_path: Path, command: Command, arch: str) -> None:
    pytest.importorskip("onnxscript")
    torch.save(build_backbone(arch).state_dict(), tmp_path / "ours.pth")
    words = ("--arch", arch, "--in_chans", 1, "--input_size", 32)
    code, text = command(convert_onnx, tmp_path / "ours.pth", tmp_path / "model.onnx", *words)
    assert code == 0 and "first layer from 3 to 1 channels" in text, text
    assert run_graph(tmp_path / "model.onnx", torch.randn(2, 1, 32, 32)).shape[0] == 2


def refuse(*_: object, **__: object) -> None:
    raise RuntimeError("no translation\nof an operator")


def test_a_network_that_torch_cannot_export_as_a_program_is_traced(
    tmp_path: Path, lively: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    caplog.set_level("INFO")
    monkeypatch.setattr(onnx, "export", refuse)
    module, images = lively(), torch.randn(3, 3, 64, 64)
    onnx.write_graph(module, images, tmp_path / "model.onnx")
    assert (
        f"torch {torch.__version__} cannot export this network as a program: tracing it instead"
        in caplog.text
    )
    assert onnx.compare(module, images, tmp_path / "model.onnx") < 1e-5


def test_a_network_that_torch_can_neither_export_nor_trace_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "export", refuse)
    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(OptionError) as refused:
        onnx.write_graph(torch.nn.Identity(), torch.zeros(3, 3, 8, 8), tmp_path / "model.onnx")
    assert str(refused.value) == (
        f"torch {torch.__version__} cannot write an ONNX graph of this network: no translation; "
        "try a newer torch, or another `arch`"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_library_is_named_with_its_command(
    weights: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    found = onnx.importlib.util.find_spec
    monkeypatch.setattr(
        onnx.importlib.util, "find_spec", lambda name: None if name == missing else found(name)
    )
    code, text = command(convert_onnx, weights, tmp_path / "model.onnx")
    assert code == 2 and text.splitlines()[-1].endswith(f"pip install {missing}")
    assert not (tmp_path / "model.onnx").exists()


def test_without_onnxruntime_the_graph_is_written_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda _: None)
    assert onnx.compare(torch.nn.Identity(), torch.zeros(1), tmp_path / "model.onnx") is None
    assert "was not run: pip install onnxruntime" in caplog.text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "name the output, as the second word or with --output: OUT.onnx"),
        (("--output", "weights.pth/x/model.onnx"), "cannot be written to"),
        (
            ("--output", "model.onnx", "--json", "nowhere/a.json"),
            "--json nowhere/a.json cannot be written",
        ),
        (
            ("--output", "model.onnx", "--input_size", "64", "64", "64"),
            "must be height and width, or one number for both (got 64 64 64)",
        ),
        (
            ("--output", "model.onnx", "--input_size", "8"),
            "must be at least one patch, 16 pixels (got 8 8)",
        ),
    ],
)
def test_wrong_words_are_refused(
    weights: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    words: Any,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = command(convert_onnx, "--pretrained_weights", weights, *words)
    assert code == 2 and reason in text


def test_a_network_beyond_one_file_is_refused(
    weights: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(onnx, "LARGEST", 300096 * 4)
    code, text = command(convert_onnx, weights, tmp_path / "model.onnx", "--input_size", 64)
    assert code == 2 and "an ONNX file holds up to 2 GiB (this network has 0.0" in text
    assert not (tmp_path / "model.onnx").exists()
