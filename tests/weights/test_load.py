"""Every form of a weights file gives the backbone that wrote it, whole, or one error that says what
is missing."""

import argparse
import logging
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dino.errors import CheckpointError, OptionError, WeightsError
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.registry import VITS, VitShape, build_backbone
from dino.weights.hub import (
    PUBLISHED,
    PUBLISHED_ROOT,
    find_published,
)
from dino.weights.load import TrainedBackbone, load_backbone

PREFIXES = ("", "module.", "backbone.", "module.backbone.")


def build(seed: int = 0, **settings: Any) -> nn.Module:
    """A small vision transformer with weights of its own."""
    torch.manual_seed(seed)
    return build_backbone("vit_mini", **{"patch_size": 16, "img_size": 64, **settings})


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def load(path: Path | str | None, *, key: str = "teacher", **settings: Any) -> TrainedBackbone:
    weights = WeightsConfig(
        pretrained_weights=None if path is None else str(path), checkpoint_key=key
    )
    return load_backbone(BackboneConfig(**settings), weights)


def save(folder: Path, state: Any) -> Path:
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def assert_same(loaded: TrainedBackbone, expected: nn.Module) -> None:
    found = loaded.module.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_plain_file_of_tensors_is_read_under_every_prefix(prefix: str, tmp_path: Path) -> None:
    loaded = load(save(tmp_path, prefixed(prefix, build())))
    assert_same(loaded, build())
    assert (loaded.arch, loaded.patch_size, loaded.image_size, loaded.in_chans) == (
        "vit_mini",
        16,
        64,
        3,
    )
    assert loaded.normalization is None
    assert not loaded.module.training


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", ["teacher", "student", "state_dict"])
def test_a_checkpoint_is_read_under_every_prefix(key: str, prefix: str, tmp_path: Path) -> None:
    others = {
        name: prefixed(prefix, build(9)) for name in ("teacher", "student") if key != "state_dict"
    }
    path = save(tmp_path, {**others, key: prefixed(prefix, build(1)), "epoch": 3})
    assert_same(load(path, key="teacher" if key == "state_dict" else key), build(1))


def test_a_checkpoint_of_the_original_with_its_head_and_namespace_is_read(tmp_path: Path) -> None:
    head = {f"module.head.mlp.{n}.weight": torch.zeros(2, 2) for n in (0, 2)}
    student = {**prefixed("module.backbone.", build(2)), **head}
    args = argparse.Namespace(
        arch="vit_mini", patch_size=16, lr=0.0005, local_crops_scale=(0.05, 0.4)
    )
    path = save(
        tmp_path,
        {"student": student, "teacher": student, "epoch": 100, "args": args, "dino_loss": {}},
    )
    loaded = load(path)
    assert_same(loaded, build(2))
    assert (loaded.arch, loaded.image_size, loaded.normalization) == ("vit_mini", 64, None)


def test_our_options_say_how_to_feed_the_backbone(tmp_path: Path) -> None:
    args = {"arch": "vit_mini", "patch_size": 8, "in_chans": 4, "global_crops_size": 48}
    normalization = {"mean": [0.5] * 4, "std": [0.25] * 4}
    module = build(3, patch_size=8, in_chans=4, img_size=48)
    loaded = load(
        save(
            tmp_path, {"teacher": module.state_dict(), "args": args, "normalisation": normalization}
        )
    )
    assert_same(loaded, module)
    assert (loaded.patch_size, loaded.in_chans, loaded.image_size) == (8, 4, 48)
    assert loaded.normalization == normalization
    assert loaded.module(torch.zeros(2, 4, 48, 48)).shape == (2, 96)


def test_patch_8_weights_open_without_settings_as_a_patch_8_network(tmp_path: Path) -> None:
    module = build(4, patch_size=8)
    loaded = load(save(tmp_path, module.state_dict()))
    assert loaded.patch_size == loaded.module.patch_size == 8
    assert_same(loaded, module)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.module(images), module.eval()(images))


@pytest.mark.parametrize("arch", ["vit_mini", "vit_micro", "vit_tiny"])
def test_the_architecture_is_told_from_the_tensors(arch: str, tmp_path: Path) -> None:
    path = save(tmp_path, {"teacher": build_backbone(arch, img_size=32).state_dict()})
    assert load(path).arch == arch


def test_options_in_the_file_win_over_the_reference(tmp_path: Path) -> None:
    module = build_backbone("deit_tiny", patch_size=8, img_size=32)
    path = save(
        tmp_path, {"teacher": module.state_dict(), "args": {"arch": "deit_tiny", "patch_size": 8}}
    )
    assert (load(path).arch, load(path).patch_size) == ("deit_tiny", 8)


def test_given_settings_win_over_the_file(tmp_path: Path) -> None:
    path = save(
        tmp_path, {"teacher": build().state_dict(), "args": {"arch": "vit_tiny", "patch_size": 8}}
    )
    with pytest.raises(WeightsError, match="vit_tiny, patch size 8"):
        load(path)
    assert_same(load(path, arch="vit_mini", patch_size=16), build())
    with pytest.raises(WeightsError, match="vit_mini, patch size 32"):
        load(path, arch="vit_mini", patch_size=32)


def test_other_backbones_are_loaded_by_their_names(tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = build_backbone("squeezenet1_1")
    loaded = load(save(tmp_path, {"teacher": prefixed("module.", module)}), arch="squeezenet1_1")
    assert_same(loaded, module)
    assert (loaded.arch, loaded.image_size) == ("squeezenet1_1", 224)


def test_missing_tensors_are_counted_and_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = build().state_dict()
    del state["norm.weight"], state["blocks.1.attn.qkv.bias"]
    state["cls_token"] = torch.zeros(1, 1, 5)
    path = save(tmp_path, {"teacher": state})
    with pytest.raises(WeightsError) as caught:
        load(path, arch="vit_mini")
    text = str(caught.value)
    assert (
        f"3 of {len(build().state_dict())} backbone tensors do not fit, nothing was loaded" in text
    )
    assert "norm.weight (missing)" in text
    assert "blocks.1.attn.qkv.bias (missing)" in text
    assert "cls_token (must be (1, 1, 96), got (1, 1, 5))" in text
    assert str(path) in text
    assert "\n" not in text


def test_a_long_list_of_missing_tensors_is_cut(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError,
        match=r"and \d+ more; the file has foreign; check `arch`, `patch_size` and `checkpoint_key`",
    ):
        load(save(tmp_path, {"teacher": {"foreign": torch.zeros(1)}}), arch="vit_mini")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        load(tmp_path / "gone.pth")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, build().state_dict())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"weights\.pth is damaged"):
        load(path)


def test_a_missing_network_names_what_there_is(tmp_path: Path) -> None:
    path = save(tmp_path, {"student": build().state_dict(), "epoch": 1})
    with pytest.raises(
        WeightsError, match="has no network 'teacher'; it holds student, epoch: set or drop"
    ):
        load(path)


def test_random_weights_are_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    weights = WeightsConfig(random_weights=True)
    with caplog.at_level(logging.WARNING):
        loaded = load_backbone(BackboneConfig(arch="vit_mini", patch_size=8), weights)
    assert "`random_weights`: an untrained vit_mini" in caplog.text
    assert (loaded.arch, loaded.patch_size, loaded.image_size) == ("vit_mini", 8, 224)


def test_random_and_given_weights_contradict_each_other() -> None:
    weights = WeightsConfig(random_weights=True, pretrained_weights="some.pth")
    with pytest.raises(OptionError, match="`random_weights` and `pretrained_weights` contradict"):
        load_backbone(BackboneConfig(), weights)


def test_random_weights_are_the_same_in_every_process_and_disturb_no_other_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    weights = WeightsConfig(random_weights=True)
    first = load_backbone(BackboneConfig(arch="vit_mini"), weights)
    assert torch.equal(torch.rand(2), expected)
    assert_same(load_backbone(BackboneConfig(arch="vit_mini"), weights), first.module)


@pytest.fixture
def small_vit_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `vit_small` of toy size, and no weights anywhere but in this test's folder."""
    monkeypatch.setitem(VITS, "vit_small", VitShape(embed_dim=24, depth=2, heads=2))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv("DINO_WEIGHTS_DIR", raising=False)


@pytest.mark.usefixtures("small_vit_small")
def test_without_a_path_the_mirror_folder_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = build_backbone("vit_small", patch_size=8)
    torch.save(module.state_dict(), tmp_path / "dino_deitsmall8_pretrain.pth")
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    with caplog.at_level(logging.INFO):
        loaded = load(None, patch_size=8)
    assert_same(loaded, module)
    assert (loaded.arch, loaded.patch_size) == ("vit_small", 8)
    assert (
        f"the published {PUBLISHED_ROOT}dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth"
        in caplog.text
    )


@pytest.mark.usefixtures("small_vit_small")
def test_a_download_happens_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def download(url: str, target: str, progress: bool) -> None:
        asked.append(url)
        torch.save(build_backbone("vit_small").state_dict(), target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        path = find_published(BackboneConfig(arch="deit_small"))
    assert asked == [PUBLISHED_ROOT + PUBLISHED["vit_small", 16]]
    assert path.is_relative_to(tmp_path / "hub")
    assert load(None).arch == "vit_small"


@pytest.mark.usefixtures("small_vit_small")
@pytest.mark.parametrize("mirror", [None, "empty"])
def test_offline_the_error_names_all_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mirror: str | None
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    if mirror:
        monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path / mirror))
    with pytest.raises(WeightsError) as caught:
        load(None)
    text = str(caught.value)
    assert PUBLISHED_ROOT + PUBLISHED["vit_small", 16] in text
    assert all(
        word in text for word in ("`pretrained_weights`", "DINO_WEIGHTS_DIR", "`random_weights`")
    )
    assert "\n" not in text


@pytest.mark.parametrize(
    ("arch", "patch_size", "named"),
    [
        ("vit_tiny", 16, "vit_tiny with patch size 16"),
        ("vit_small", 4, "patch size 4"),
        ("resnet18", 16, "resnet18:"),
    ],
)
def test_without_published_weights_the_error_names_the_network(
    arch: str, patch_size: int, named: str
) -> None:
    with pytest.raises(WeightsError, match="no weights are published for") as caught:
        load(None, arch=arch, patch_size=patch_size)
    assert named in str(caught.value)
    assert "`random_weights`" in str(caught.value)


def test_what_a_file_holds_besides_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight": torch.zeros(2, 2)}
    with caplog.at_level(logging.INFO):
        load(
            save(
                tmp_path,
                {"teacher": {**build().state_dict(), **head, "pooler.dense.bias": torch.zeros(2)}},
            )
        )
    assert (
        "42 of 42 backbone tensors loaded into vit_mini; not part of it: head (2), pooler (1)"
        in caplog.text
    )


@pytest.mark.parametrize(
    "name", ["blocks.0.ls1.gamma", "reg_token", "fc_norm.weight", "norm_pre.weight"]
)
def test_a_vision_transformer_with_parts_of_its_own_is_another_network(
    name: str, tmp_path: Path
) -> None:
    path = save(tmp_path, {**build().state_dict(), name: torch.zeros(96)})
    with pytest.raises(
        WeightsError, match=rf"it is another network, with 1 tensors .*: {name}; check `arch`"
    ):
        load(path)


def test_a_width_that_no_architecture_has_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VITS, "vit_odd", VitShape(embed_dim=24, depth=2, heads=2))
    path = save(tmp_path, build_backbone("vit_odd", img_size=32).state_dict())
    assert load(path).arch == "vit_odd"
    monkeypatch.delitem(VITS, "vit_odd")
    with pytest.raises(
        WeightsError, match="no architecture of this project has its width and depth"
    ):
        load(path)


@pytest.fixture
def small_vit_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `vit_base` of toy size."""
    monkeypatch.setitem(VITS, "vit_base", VitShape(embed_dim=72, depth=3, heads=3, mlp_ratio=2.0))


def build_autoencoder() -> tuple[nn.Module, dict[str, Tensor]]:
    """timm's network for the weights of masked autoencoders, and a file of such weights, decoder
    included."""
    torch.manual_seed(6)
    shape = {"embed_dim": 72, "depth": 3, "num_heads": 3, "mlp_ratio": 2, "img_size": 64}
    module = timm.create_model("vit_base_patch16_224.mae", num_classes=0, **shape).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    decoder = {
        "mask_token": (1, 1, 8),
        "decoder_pos_embed": (1, 17, 8),
        "decoder_blocks.0.norm1.weight": (8,),
    }
    return module, {
        **module.state_dict(),
        **{name: torch.zeros(shape) for name, shape in decoder.items()},
    }


@pytest.mark.usefixtures("small_vit_base")
@pytest.mark.parametrize("arch", ["mae", "mae_vit_base_patch16"])
@pytest.mark.parametrize("key", ["model", None])
def test_an_autoencoders_encoder_gives_timms_features(
    arch: str, key: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, tensors = build_autoencoder()
    with caplog.at_level(logging.INFO):
        loaded = load(save(tmp_path, {key: tensors} if key else tensors), arch=arch)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(loaded.module(images), module(images), atol=1e-5)
    assert (loaded.arch, loaded.patch_size, loaded.image_size) == ("vit_base", 16, 64)
    assert (
        "not part of it: mask_token (1), decoder_pos_embed (1), decoder_blocks (1)" in caplog.text
    )


@pytest.mark.usefixtures("small_vit_base")
def test_beside_an_autoencoders_encoder_only_its_decoder_may_stay(tmp_path: Path) -> None:
    path = save(tmp_path, {"model": {**build_autoencoder()[1], "head.weight": torch.zeros(10, 72)}})
    assert load(path).arch == "vit_base"
    with pytest.raises(WeightsError, match=r"another network, with 1 tensors .*: head\.weight"):
        load(path, arch="mae")


@pytest.mark.parametrize("arch", ["mae", "mae_vit_huge_patch14"])
def test_an_autoencoder_without_a_file_is_an_error(arch: str) -> None:
    with pytest.raises(
        WeightsError, match="needs `pretrained_weights` with the encoder of a masked autoencoder"
    ):
        load_backbone(BackboneConfig(arch=arch), WeightsConfig(random_weights=True))


@pytest.mark.usefixtures("small_vit_small")
def test_a_name_of_the_hub_is_loaded_exactly_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    module = build_backbone("vit_small", patch_size=8)
    torch.save(module.state_dict(), tmp_path / "dino_deitsmall8_pretrain.pth")
    for name in ("dino_vits8", "dino_deits8"):
        assert_same(load(f"hub:{name}"), module)
        assert_same(load(f"hub:{name}", arch="vit_small", patch_size=8), module)
    torch.save(
        {**module.state_dict(), "head.bias": torch.zeros(3)},
        tmp_path / "dino_deitsmall8_pretrain.pth",
    )
    with pytest.raises(WeightsError, match=r"another network, with 1 tensors .*: head\.bias"):
        load("hub:dino_vits8")


def test_published_xcit_names_are_translated_and_all_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The original's XCiT calls the position embedding `pos_embeder` and joins q, k and v of class
    attention."""
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    module = build_backbone("xcit_nano_12_p16")
    theirs = {
        name.replace("pos_embed.", "pos_embeder."): value
        for name, value in module.state_dict().items()
    }
    for block in range(len(module.cls_attn_blocks)):
        for kind in ("weight", "bias"):
            parts = [
                theirs.pop(f"cls_attn_blocks.{block}.attn.{letter}.{kind}") for letter in "qkv"
            ]
            theirs[f"cls_attn_blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    torch.save(theirs, tmp_path / "weights.pth")
    backbone, published = (
        BackboneConfig(arch="xcit_nano_12_p16"),
        {("xcit_nano_12_p16", None): "folder/weights.pth"},
    )
    assert_same(load_backbone(backbone, WeightsConfig(), published=published), module)
