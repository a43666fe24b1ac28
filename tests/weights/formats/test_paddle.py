"""PASSL's files become ours with PASSL's own features, and ours become files that read back to the
bit."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dino.cli.convert import convert_paddle
from dino.evaluation.linear.head import LinearHead
from dino.evaluation.linear.task import load_head
from dino.models.registry import VITS, VitShape, build_backbone
from tests.weights.conftest import equal_tensors

Command = Callable[..., tuple[int, str]]
SAMPLES = ("sample_dino_tiny", "sample_dino_tiny_noprefix", "sample_dino_tiny_paddle262")
TOLERANCE = 1e-4


@pytest.fixture
def sample_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of the recorded files as an architecture: files do not tell heads."""
    monkeypatch.setitem(VITS, "vit_sample", VitShape(embed_dim=64, depth=2, heads=2))


@pytest.mark.usefixtures("sample_shape")
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_features_are_those_that_passls_own_model_gave(
    shared_data: Path, tmp_path: Path, command: Command, reload: Any, name: str, converted: bool
) -> None:
    path = shared_data / "passl" / f"{name}.pdparams"
    if converted:
        code, text = command(convert_paddle, path, tmp_path / "ours.pth")
        assert (
            code == 0 and f"{path} -> {tmp_path / 'ours.pth'}: 30 of 30 tensors matched\n" in text
        )
        path = tmp_path / "ours.pth"
    module = reload(path)
    with (
        np.load(shared_data / "passl" / "sample_dino_tiny_io.npz") as recorded,
        torch.inference_mode(),
    ):
        images = torch.from_numpy(recorded["x"])
        layers = torch.stack(module.get_intermediate_layers(images, 2))
        found = {
            "cls": module(images),
            "last_blocks": layers,
            "attn_last": module.get_last_selfattention(images),
        }
        for kind, value in found.items():
            assert value.shape == recorded[kind].shape
            assert np.abs(value.numpy() - recorded[kind]).max() < TOLERANCE, kind


@pytest.mark.usefixtures("sample_shape")
def test_a_probes_layer_gives_passls_logits(
    shared_data: Path, tmp_path: Path, command: Command, reload: Any
) -> None:
    path, ours = (
        shared_data / "passl" / "sample_dino_tiny_linearprobe.pdparams",
        tmp_path / "ours.pth",
    )
    code, text = command(convert_paddle, path, ours)
    assert code == 0 and "32 of 32 tensors matched\n" in text
    head = LinearHead(128, 10)
    load_head(head, ours, {})
    with (
        np.load(shared_data / "passl" / "sample_dino_tiny_linearprobe_io.npz") as recorded,
        torch.inference_mode(),
    ):
        tokens = reload(ours).get_intermediate_layers(torch.from_numpy(recorded["x"]), 1)[0]
        features = torch.stack([tokens[:, 0], tokens[:, 1:].mean(1)], dim=-1).flatten(1)
        assert np.abs(head(features).numpy() - recorded["logits"]).max() < TOLERANCE


@pytest.mark.parametrize("name", ["sample_dino_tiny", "sample_dino_tiny_linearprobe"])
def test_passls_files_come_back_to_the_bit(
    shared_data: Path, tmp_path: Path, command: Command, name: str
) -> None:
    path = shared_data / "passl" / f"{name}.pdparams"
    assert command(convert_paddle, path, tmp_path / "ours.pth")[0] == 0
    assert command(convert_paddle, tmp_path / "ours.pth", tmp_path / "theirs.pdparams")[0] == 0
    before, after = (
        pickle.loads(file.read_bytes()) for file in (path, tmp_path / "theirs.pdparams")
    )
    del before["StructuredToParameterName@@"]
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert after[key].dtype == array.dtype and np.array_equal(after[key], array), key


def test_ours_go_there_and_come_back_to_the_bit(
    weights: Path, tmp_path: Path, command: Command, reload: Any, lively: Any
) -> None:
    code, text = command(convert_paddle, weights, tmp_path / "theirs.pdparams")
    assert code == 0 and "42 of 42 tensors matched; not part of it: head (1)\n" in text
    assert command(convert_paddle, tmp_path / "theirs.pdparams", tmp_path / "back.pth")[0] == 0
    assert equal_tensors(reload(tmp_path / "back.pth"), lively())
    written = pickle.loads((tmp_path / "theirs.pdparams").read_bytes())
    assert all(name.startswith("backbone.") for name in written)
    own = lively().state_dict()
    assert np.array_equal(
        written["backbone.blocks.0.attn.proj.weight"], own["blocks.0.attn.proj.weight"].numpy().T
    )


def test_bfloat16_is_stored_as_its_bits_and_comes_back(
    tmp_path: Path, command: Command, lively: Any
) -> None:
    own = {name: tensor.bfloat16() for name, tensor in lively().state_dict().items()}
    torch.save(own, tmp_path / "ours.pth")
    assert command(convert_paddle, tmp_path / "ours.pth", tmp_path / "theirs.pdparams")[0] == 0
    assert {
        array.dtype for array in pickle.loads((tmp_path / "theirs.pdparams").read_bytes()).values()
    } == {np.dtype("uint16")}
    assert command(convert_paddle, tmp_path / "theirs.pdparams", tmp_path / "back.pth")[0] == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["teacher"]
    assert all(torch.equal(back[f"backbone.{name}"], tensor) for name, tensor in own.items())


def test_a_linear_layer_of_its_own_file_is_joined(
    weights: Path, tmp_path: Path, command: Command
) -> None:
    layer = {"module.linear.weight": torch.randn(5, 96), "module.linear.bias": torch.randn(5)}
    torch.save({"state_dict": layer, "epoch": 3}, tmp_path / "checkpoint.pth.tar")
    words = (
        weights,
        tmp_path / "theirs.pdparams",
        "--pretrained_linear",
        tmp_path / "checkpoint.pth.tar",
    )
    code, text = command(convert_paddle, *words)
    assert code == 0 and "44 of 44 tensors matched" in text
    written = pickle.loads((tmp_path / "theirs.pdparams").read_bytes())
    assert np.array_equal(written["linear.linear.weight"], layer["module.linear.weight"].numpy().T)
    held = torch.load(weights, weights_only=True)
    held["teacher"] |= {"linear.weight": torch.zeros(7, 96), "linear.bias": torch.zeros(7)}
    torch.save(held, tmp_path / "both.pth")
    code, text = command(convert_paddle, tmp_path / "both.pth", *words[1:])
    assert code == 0 and "44 of 44 tensors matched; not part of it: head (1), linear (2)\n" in text
    code, text = command(convert_paddle, *words[:3], weights)
    assert code == 2 and "holds no linear layer" in text


@pytest.mark.parametrize(
    ("weight", "bias"), [((7, 999), (7,)), ((7, 96), (3,)), ((7, 96, 1), (7,)), ((7, 0), (7,))]
)
def test_a_linear_layer_of_another_shape_is_refused(
    weights: Path, tmp_path: Path, command: Command, weight: tuple[int, ...], bias: tuple[int, ...]
) -> None:
    layer = {"module.linear.weight": torch.zeros(weight), "module.linear.bias": torch.zeros(bias)}
    torch.save({"state_dict": layer}, tmp_path / "layer.pth")
    words = (weights, tmp_path / "theirs.pdparams", "--pretrained_linear", tmp_path / "layer.pth")
    code, text = command(convert_paddle, *words)
    assert (
        code == 2
        and "a linear layer must have shapes (C, n x 96) and (C,) (got" in text
        and not words[1].exists()
    )
    torch.save(
        {"teacher": torch.load(weights)["teacher"], "state_dict": layer}, tmp_path / "both.pth"
    )
    assert command(convert_paddle, tmp_path / "both.pth", words[1])[0] == 2


class Call:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch RAN",)


def test_a_hostile_file_ends_with_2_in_one_line_and_nothing_runs(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.pdparams").write_bytes(pickle.dumps({"a": Call()}, protocol=4))
    code, text = command(convert_paddle, "in.pdparams", "out.pth")
    assert code == 2 and len(text.splitlines()) == 1 and "posix.system" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pdparams"]


def test_what_is_missing_or_too_much_is_listed_and_nothing_is_written(
    weights: Path, tmp_path: Path, command: Command, lively: Any
) -> None:
    assert command(convert_paddle, weights, tmp_path / "theirs.pdparams")[0] == 0
    arrays = pickle.loads((tmp_path / "theirs.pdparams").read_bytes())
    del arrays["backbone.norm.bias"]
    (tmp_path / "theirs.pdparams").write_bytes(pickle.dumps(arrays, protocol=4))
    code, text = command(convert_paddle, tmp_path / "theirs.pdparams", tmp_path / "ours.pth")
    assert code == 2 and "norm.bias (missing)" in text
    arrays |= {
        "backbone.norm.bias": np.zeros(96, np.float32),
        "backbone.dist_token": np.zeros(96, np.float32),
    }
    (tmp_path / "theirs.pdparams").write_bytes(pickle.dumps(arrays, protocol=4))
    code, text = command(convert_paddle, tmp_path / "theirs.pdparams", tmp_path / "ours.pth")
    assert code == 2 and "another network, with 1 tensors" in text and "dist_token" in text
    assert not (tmp_path / "ours.pth").exists()


@pytest.mark.parametrize("arch", ["vit_micro", "resnet18"])
def test_a_network_that_passl_has_not_is_refused(
    tmp_path: Path, command: Command, arch: str
) -> None:
    torch.save(build_backbone(arch, img_size=32).state_dict(), tmp_path / "ours.pth")
    code, text = command(
        convert_paddle, tmp_path / "ours.pth", tmp_path / "theirs.pdparams", "--arch", arch
    )
    assert code == 2 and f"must be a vision transformer of the paper for PASSL (got {arch})" in text


def test_parameters_go_and_numbers_that_paddle_has_not_are_refused(
    tmp_path: Path, command: Command, lively: Any
) -> None:
    parameters = dict(lively().named_parameters())
    torch.save(parameters, tmp_path / "parameters.pth")
    assert command(convert_paddle, tmp_path / "parameters.pth", tmp_path / "out.pdparams")[0] == 0
    eighths = {name: tensor.detach().to(torch.float8_e4m3fn) for name, tensor in parameters.items()}
    torch.save(eighths, tmp_path / "eighths.pth")
    code, text = command(convert_paddle, tmp_path / "eighths.pth", tmp_path / "other.pdparams")
    assert code == 2 and "holds float8_e4m3fn, which Paddle's files do not support" in text
    assert not (tmp_path / "other.pdparams").exists()


def test_loading_a_pdparams_needs_no_conversion(
    weights: Path, tmp_path: Path, command: Command, reload: Any
) -> None:
    assert command(convert_paddle, weights, tmp_path / "theirs.pdparams")[0] == 0
    module: nn.Module = reload(tmp_path / "theirs.pdparams")
    assert equal_tensors(module, reload(weights))
