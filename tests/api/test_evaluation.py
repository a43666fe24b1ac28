"""Features, scores and maps from Python are those that the commands write."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dino
import eval_knn
import eval_linear
import extract_features
import visualize_attention
from dino.devices import cpu, cpu_attention
from dino.errors import CheckpointError, DataError, DeviceError, OptionError
from tests.api.tiny import COUNT, Pictures, draw_pixels, to_tensor

CPU = {"device": "cpu", "num_workers": 0}
QUICK = ["--device", "cpu", "--num_workers", "0"]

Relative = Callable[[object, object], float]


@pytest.fixture(scope="module")
def expected(weights: Path) -> torch.Tensor:
    """Features of `Pictures`, (COUNT, 96)."""
    return dino.embed(dino.load(weights), Pictures(), **CPU).vectors


def test_embed_gives_what_extract_features_writes(
    backbone: nn.Module, weights: Path, splits: Path, tmp_path: Path
) -> None:
    output = tmp_path / "features.npz"
    words = ["--data_path", splits, "--pretrained_weights", weights, "--output", output]
    extract_features.main([*QUICK, *map(str, words)])
    found = dino.embed(backbone, splits, **CPU)
    with np.load(output) as file:
        assert np.array_equal(found.vectors.numpy(), file["features"])
        assert found.names == file["names"].tolist()
        assert found.labels is not None and np.array_equal(found.labels.numpy(), file["labels"])
    assert found.vectors.dtype == torch.float32 and found.labels.dtype == torch.int64


@pytest.mark.parametrize(
    "images",
    [
        pytest.param([Image.fromarray(draw_pixels(index)) for index in range(COUNT)], id="pil"),
        pytest.param([draw_pixels(index) for index in range(COUNT)], id="arrays"),
        pytest.param([to_tensor(draw_pixels(index)) for index in range(COUNT)], id="tensors"),
        pytest.param(np.stack([draw_pixels(index) for index in range(COUNT)]), id="one array"),
        pytest.param(
            torch.stack([to_tensor(draw_pixels(index)) for index in range(COUNT)]), id="one tensor"
        ),
        pytest.param(Pictures(convert=to_tensor), id="data set"),
    ],
)
def test_embed_takes_images_of_any_kind_in_their_order(
    images: Any, backbone: nn.Module, expected: torch.Tensor
) -> None:
    found = dino.embed(backbone, images, **CPU)
    assert torch.equal(found.vectors, expected)
    assert found.names == [str(index) for index in range(COUNT)] and found.labels is None


def test_embed_takes_paths_by_their_names(
    backbone: nn.Module, expected: torch.Tensor, pictures: Path
) -> None:
    paths = sorted(pictures.iterdir(), reverse=True)
    found = dino.embed(backbone, paths, **CPU)
    assert torch.equal(found.vectors, expected.flip(0)) and found.names == [
        str(path) for path in paths
    ]
    folder = dino.embed(backbone, str(pictures), **CPU)
    assert torch.equal(folder.vectors, expected) and folder.names[:2] == ["000.png", "001.png"]
    one = dino.embed(backbone, paths[0], **CPU)
    assert torch.allclose(one.vectors, expected[-1:], atol=1e-5) and one.names == [str(paths[0])]


def test_embed_takes_one_picture_of_a_program(backbone: nn.Module, expected: torch.Tensor) -> None:
    found = dino.embed(backbone, Image.fromarray(draw_pixels(0)), **CPU)
    assert torch.allclose(found.vectors, expected[:1], atol=1e-5)


def test_embed_takes_labels_along_where_every_image_has_one(backbone: nn.Module) -> None:
    found = dino.embed(backbone, Pictures(label=lambda index: index % 3), **CPU)
    assert found.labels is not None and found.labels.tolist() == [
        index % 3 for index in range(COUNT)
    ]
    assert (
        dino.embed(backbone, Pictures(label=lambda index: f"class {index}"), **CPU).labels is None
    )
    assert dino.embed(backbone, Pictures(label=lambda index: index - 1), **CPU).labels is None


def test_loader_processes_give_the_same_order(backbone: nn.Module, expected: torch.Tensor) -> None:
    """And the program's own handler of ended children is there again."""
    told: list[int] = []
    before = signal.signal(signal.SIGCHLD, lambda number, _: told.append(number))
    try:
        handler = signal.getsignal(signal.SIGCHLD)
        found = dino.embed(
            backbone, Pictures(), device="cpu", num_workers=2, batch_size_per_device=5
        )
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert torch.allclose(found.vectors, expected, atol=1e-5)


def test_bf16_is_near_fp32(
    backbone: nn.Module, expected: torch.Tensor, relative_error: Relative
) -> None:
    found = dino.embed(backbone, Pictures(), precision="bf16", **CPU).vectors
    assert found.dtype == torch.float32 and 1e-5 < relative_error(found, expected) < 2e-2


def test_any_module_can_be_embedded_with(relative_error: Relative) -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = dino.embed(module, [np.full((30, 30, 3), 255, np.uint8)], **CPU).vectors
    imagenet = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert relative_error(found[0], imagenet) < 1e-5
    with pytest.raises(TypeError, match=r"must return a tensor \(B, D\) \(got tuple\)"):
        dino.embed(Pair(), [draw_pixels(0)], **CPU)


class Pair(nn.Module):
    """No backbone: it gives two things."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


def test_the_backbone_comes_back_in_its_mode_and_the_host_is_as_it_was(
    backbone: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Malloc's settings, torch's attention, random numbers and log handlers belong to the host."""
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: pytest.fail("malloc is the host's"))
    cpu_attention.restore_attention()
    backbone.train()
    backbone.norm.eval()
    modes = [module.training for module in backbone.modules()]
    root = logging.getLogger()
    before = root.handlers[:], root.level, torch.get_rng_state(), signal.getsignal(signal.SIGTERM)
    dino.embed(backbone, Pictures(), precision="bf16", **CPU)
    dino.attention(backbone, Pictures(2), device="cpu")
    assert (root.handlers, root.level) == before[:2] and torch.equal(
        torch.get_rng_state(), before[2]
    )
    assert signal.getsignal(signal.SIGTERM) == before[3]
    assert cpu_attention.widen_backward.cache_info().currsize == 0
    assert [module.training for module in backbone.modules()] == modes
    assert {parameter.device.type for parameter in backbone.parameters()} == {"cpu"}
    with pytest.raises(DataError):
        dino.embed(backbone, ["no.png"], **CPU)
    assert [module.training for module in backbone.modules()] == modes


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        (
            {"precision": "fp16"},
            DeviceError,
            "^`precision` fp16 needs `device` cuda; use bf16 or fp32 on the cpu$",
        ),
        ({"precision": "half"}, OptionError, "`precision` must be one of .*got 'half'"),
        ({"device": "tpu"}, OptionError, "`device` must be one of hpu, cuda, cpu, ipu .*'tpu'"),
        ({"batch_size_per_device": 0}, OptionError, "`batch_size_per_device` must be >= 1"),
        ({"num_workers": 1.5}, OptionError, "`num_workers` must be of type int"),
    ],
)
def test_wrong_values_are_refused(
    settings: dict[str, Any], kind: type[Exception], text: str, backbone: nn.Module
) -> None:
    with pytest.raises(kind, match=text):
        dino.embed(backbone, Pictures(), **{"device": "cpu", **settings})


def test_knn_gives_what_eval_knn_writes(
    backbone: nn.Module, weights: Path, splits: Path, tmp_path: Path
) -> None:
    words = [
        "--data_path",
        splits,
        "--pretrained_weights",
        weights,
        "--json",
        tmp_path / "knn.json",
        "--nb_knn",
        3,
        50,
    ]
    eval_knn.main([*QUICK, *map(str, words)])
    written = json.loads((tmp_path / "knn.json").read_text())["knn"]
    found = dino.knn(backbone, splits, nb_knn=(3, 50), **CPU)
    assert {str(k): score._asdict() for k, score in found.items()} == written
    pair = dino.knn(backbone, (splits / "train", splits / "val"), nb_knn=[3, 50], **CPU)
    assert pair == found
    assert dino.knn(backbone, str(splits), nb_knn=3, **CPU) == {3: found[3]}


def test_knn_of_data_sets_equals_that_of_folders(backbone: nn.Module, splits: Path) -> None:
    own = [dino.embed(backbone, splits / name, **CPU) for name in ("train", "val")]
    train, val = (
        [(path, int(label)) for path, label in zip(*each, strict=True)]
        for each in _list(splits, own)
    )
    assert dino.knn(backbone, (train, val), nb_knn=3, **CPU) == dino.knn(
        backbone, splits, nb_knn=3, **CPU
    )


def _list(splits: Path, own: list[dino.Embeddings]) -> list[tuple[list[Path], list[int]]]:
    folders = (splits / "train", splits / "val")
    return [
        ([root / name for name in e.names], e.labels.tolist())
        for root, e in zip(folders, own, strict=True)
    ]


def test_linear_probe_gives_what_eval_linear_gives(
    backbone: nn.Module, weights: Path, splits: Path, tmp_path: Path
) -> None:
    words = [
        "--data_path",
        splits,
        "--pretrained_weights",
        weights,
        "--json",
        tmp_path / "linear.json",
    ]
    words += [
        "--output_dir",
        tmp_path / "command",
        "--epochs",
        2,
        "--n_last_blocks",
        2,
        "--batch_size_per_device",
        6,
    ]
    eval_linear.main([*QUICK, *map(str, words)])
    settings = {"epochs": 2, "n_last_blocks": 2, "batch_size_per_device": 6, **CPU}
    drawn = torch.get_rng_state()
    found = dino.linear_probe(backbone, splits, tmp_path / "call", **settings)
    written = json.loads((tmp_path / "linear.json").read_text())
    assert found._asdict() == {name: written[name] for name in ("loss", "top1", "top5")}
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (
        dino.linear_probe(backbone, splits, tmp_path / "call", **settings) == found
    )  # continues at its end
    other = dino.load(weights)
    nn.init.zeros_(other.norm.weight)
    with pytest.raises(CheckpointError, match="trained with another backbone"):
        dino.linear_probe(other, splits, tmp_path / "call", **settings)


def test_linear_probe_takes_a_precision_and_data_sets(backbone: nn.Module, tmp_path: Path) -> None:
    """Here val lacks the last class, which the layer has all the same."""
    data = Pictures(label=lambda index: index % 3), Pictures(4, label=lambda index: index % 2)
    settings = {
        "epochs": 1,
        "n_last_blocks": 1,
        "batch_size_per_device": 6,
        "cache_features": True,
        **CPU,
    }
    exact = dino.linear_probe(backbone, data, tmp_path / "fp32", **settings)
    found = dino.linear_probe(backbone, data, tmp_path / "bf16", precision="bf16", **settings)
    assert found.loss != exact.loss and found.loss == pytest.approx(exact.loss, rel=0.05)
    layer = torch.load(tmp_path / "bf16" / "checkpoint.pth.tar", weights_only=True)["state_dict"][
        "module.linear.weight"
    ]
    assert layer.shape == (3, 96) and layer.dtype == torch.float32


def test_a_probes_keywords_are_eval_linears_without_those_that_the_arguments_say(
    backbone: nn.Module, splits: Path, tmp_path: Path
) -> None:
    for name in ("arch", "pretrained_weights", "data_path"):
        with pytest.raises(TypeError, match=f"takes no keyword '{name}'"):
            dino.linear_probe(backbone, splits, tmp_path, **{name: "x"})
    with pytest.raises(TypeError, match=r"unknown setting 'learning_rate': did you mean lr\?"):
        dino.linear_probe(backbone, splits, tmp_path, learning_rate=1)
    with pytest.raises(
        OptionError, match=r"`n_last_blocks` must be at most 3 for vit_mini \(got 4\)"
    ):
        dino.linear_probe(
            backbone, splits, tmp_path, n_last_blocks=4, batch_size_per_device=6, **CPU
        )
    with pytest.raises(TypeError, match="must come from dino.load"):
        dino.linear_probe(Pair(), splits, tmp_path)


def test_attention_gives_what_visualize_attention_writes(
    backbone: nn.Module, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ["--image_path", pictures, "--pretrained_weights", weights, "--output_dir", tmp_path]
    visualize_attention.main(["--device", "cpu", "--image_size", "64", "48", *map(str, words)])
    found = dino.attention(backbone, pictures, image_size=(64, 48), device="cpu")
    assert [maps.shape for maps in found] == [(3, 8, 6)] * COUNT
    for number, maps in enumerate(found):
        assert np.array_equal(maps.numpy(), np.load(tmp_path / f"{number:03}" / "attention.npy"))


def test_attention_sizes(backbone: nn.Module) -> None:
    """None leaves images as they are, 20 by 24 pixels; one number is the shorter side."""
    assert dino.attention(backbone, Pictures(1), device="cpu")[0].shape == (3, 2, 3)
    assert dino.attention(backbone, Pictures(1), image_size=40, device="cpu")[0].shape == (3, 5, 6)
    rough = dino.attention(backbone, Pictures(1), image_size=40, device="cpu", precision="bf16")[0]
    assert rough.dtype == torch.float32 and bool((rough.sum(dim=(1, 2)) <= 1.01).all())
    for size, text in ((0, "must be >= 1"), ((8, 8, 8), ".got 3 numbers"), ("8", "of type int")):
        with pytest.raises(OptionError, match=f"`image_size`.* {text}"):
            dino.attention(backbone, Pictures(1), image_size=size)
    with pytest.raises(DataError, match="must be at least one patch of 8 pixels .got 4 x 4"):
        dino.attention(backbone, Pictures(1), image_size=(4, 4), device="cpu")
    with pytest.raises(
        TypeError, match=r"only vision transformers have attention maps \(got Pair\)"
    ):
        dino.attention(Pair(), Pictures(1))
