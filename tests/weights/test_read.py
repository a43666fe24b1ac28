"""Every form of weights that can be named is read to one; and what cannot be read is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from dino.errors import CheckpointError, WeightsError
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.registry import build_backbone
from dino.weights.formats import timm as timm_format
from dino.weights.formats.huggingface import to_hugging_face
from dino.weights.load import TrainedBackbone, load_backbone
from dino.weights.read import read_weights, rename_to_ours, select_network


def build(arch: str = "vit_mini", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    module = build_backbone(arch, **{"img_size": 64, **settings})
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


def load(word: Path | str, **settings: Any) -> TrainedBackbone:
    return load_backbone(BackboneConfig(**settings), WeightsConfig(pretrained_weights=str(word)))


def assert_same(loaded: TrainedBackbone, expected: nn.Module) -> None:
    found = loaded.module.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def make_folder(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    """A folder as transformers writes it, of `vit_mini`."""
    config = {
        **{
            "model_type": "vit",
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
        },
        **{
            "intermediate_size": 192,
            "layer_norm_eps": 1e-6,
            "image_size": 64,
            "patch_size": 16,
            **changes,
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(build().state_dict(), tmp_path / "w.safetensors")
    assert_same(load(tmp_path / "w.safetensors"), build())


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_a_hugging_face_folder_is_read(tmp_path: Path, prefix: str) -> None:
    tensors = {
        f"{prefix}{name}": value for name, value in to_hugging_face(build().state_dict()).items()
    }
    tensors["pooler.dense.weight"] = torch.zeros(96, 96)
    folder = make_folder(tmp_path / "hf", tensors)
    loaded = load(folder)
    assert_same(loaded, build())
    assert (loaded.arch, loaded.patch_size, loaded.image_size, loaded.normalization) == (
        "vit_mini",
        16,
        64,
        None,
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    assert load(folder).normalization == {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert_same(load(folder), build())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "dinov2"}, r"model_type must be 'vit' \(got 'dinov2'\)"),
        ({"layer_norm_eps": 1e-5}, r"layer_norm_eps must be 1e-06 \(got 1e-05\)"),
        ({"hidden_act": "quick_gelu"}, r"hidden_act must be 'gelu' \(got 'quick_gelu'\)"),
        (
            {"image_size": [64, 144]},
            r"mean a projection of \(3, 16, 16\) and 37 positions; its tensors have .* and 17",
        ),
        (
            {"image_size": [32, 128]},
            r"must be stored for square images \(got 32 x 128 pixels\)",
        ),
        ({"image_size": "64"}, r"must be numbers of pixels \(got '64', 16\)"),
        ({"patch_size": 0}, r"must be numbers of pixels \(got 64, 0\)"),
        ({"patch_size": 8}, r"mean a projection of \(3, 8, 8\)"),
        ({"num_channels": 1}, r"mean a projection of \(1, 16, 16\)"),
        (
            {"num_attention_heads": 4},
            "no architecture of this project has hidden_size 96, .*num_attention_heads 4",
        ),
    ],
)
def test_a_folder_of_another_network_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(WeightsError, match=reason):
        load(make_folder(tmp_path / "hf", to_hugging_face(build().state_dict()), **changes))


def test_the_epsilon_that_transformers_writes_where_nobody_chose_one_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = make_folder(
        tmp_path / "hf", to_hugging_face(build().state_dict()), layer_norm_eps=1e-12
    )
    assert_same(load(folder), build())
    assert (
        f"{folder}: layer_norm_eps 1e-12, transformers' default; computed with 1e-06" in caplog.text
    )


@pytest.mark.parametrize("state", [build().state_dict(), {"state_dict": build().state_dict()}])
def test_a_file_without_the_network_that_is_asked_for_is_refused(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    torch.save(state, tmp_path / "w.pth")
    weights = WeightsConfig(pretrained_weights=str(tmp_path / "w.pth"), checkpoint_key="nonsense")
    with pytest.raises(WeightsError, match="has no network 'nonsense'.* drop `checkpoint_key`"):
        load_backbone(BackboneConfig(), weights)


def test_a_folder_whose_position_embedding_is_no_table_is_refused(tmp_path: Path) -> None:
    tensors = {
        **to_hugging_face(build().state_dict()),
        "embeddings.position_embeddings": torch.zeros(()),
    }
    with pytest.raises(WeightsError, match="pos"):
        load(make_folder(tmp_path / "hf", tensors))


def test_paddles_safetensors_are_transposed_too(tmp_path: Path) -> None:
    tensors = {
        f"backbone.{name}": value.T.contiguous() if value.ndim == 2 else value
        for name, value in build().state_dict().items()
    }
    (tmp_path / "w.pdparams").write_bytes(safetensors.torch.save(tensors))
    assert_same(load(tmp_path / "w.pdparams"), build())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.safetensors", None, "does not exist"),
        ("bad.safetensors", b"{}", "is damaged or not a safetensors file"),
        ("gone.pdparams", None, "cannot be read"),
        ("bad.pdparams", b"\x09\0\0\0\0\0\0\0{bad", "is damaged or not a safetensors file"),
        ("folder/config.json", b"{", "cannot be read"),
        ("folder/config.json", b"[]", r"must hold a dictionary \(got list\)"),
        ("folder/other", b"", "cannot be read"),
        (
            "folder/config.json",
            b'{"model_type": "vit", "layer_norm_eps": 1e-6}',
            "holds none of model.safetensors",
        ),
    ],
)
def test_missing_and_damaged_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_weights(str(path.parent if name.startswith("folder") else path))
    assert str(tmp_path) in str(caught.value)


@pytest.fixture
def timm_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights by timm's names, and nothing to download."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", refuse)
    return tmp_path


def test_a_vision_transformer_of_timm_becomes_ours_where_it_computes_the_same(
    timm_mirror: Path,
) -> None:
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    safetensors.torch.save_file(
        model.state_dict(), timm_mirror / "vit_tiny_patch16_224.augreg_in21k.safetensors"
    )
    loaded = load("timm:vit_tiny_patch16_224.augreg_in21k")
    assert (loaded.arch, loaded.patch_size, loaded.image_size) == ("vit_tiny", 16, 224)
    assert loaded.normalization == {"mean": [0.5] * 3, "std": [0.5] * 3}
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(loaded.module(images), model(images), atol=1e-5)


def test_any_other_network_of_timm_stays_timms(timm_mirror: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model("resnet10t", num_classes=0)
    torch.save(model.state_dict(), timm_mirror / "resnet10t.c3_in1k.pth")
    loaded = load("timm:resnet10t.c3_in1k")
    assert loaded.arch == "timm:resnet10t.c3_in1k"
    assert_same(loaded, model)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            lambda tensors: {name: tensors[name] for name in tensors if name.startswith("fc.")},
            "only a classifier",
        ),
        (
            lambda tensors: {name: tensors[name] for name in tensors if name != "bn1.bias"},
            "bn1.bias",
        ),
        (lambda tensors: {**tensors, "extra.weight": torch.zeros(1)}, "extra.weight"),
    ],
    ids=["classifier alone", "one missing", "one more"],
)
def test_a_mirrored_file_that_is_not_the_whole_network_is_refused(
    timm_mirror: Path, change: Any, word: str
) -> None:
    tensors = timm.create_model("resnet10t").state_dict()
    path = timm_mirror / "resnet10t.c3_in1k.pth"
    torch.save(tensors, path)
    assert load("timm:resnet10t.c3_in1k").arch == "timm:resnet10t.c3_in1k"
    torch.save(change(tensors), path)
    with pytest.raises(WeightsError, match=word) as caught:
        load("timm:resnet10t.c3_in1k")
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def test_what_timm_downloads_is_taken_whole_or_not_at_all(
    timm_mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    tensors = timm.create_model("resnet10t").state_dict()
    monkeypatch.setattr(
        timm.models._builder, "load_state_dict_from_hf", lambda *_, **__: dict(tensors)
    )
    assert torch.equal(
        load("timm:resnet10t.c3_in1k").module.state_dict()["bn1.weight"], tensors["bn1.weight"]
    )
    del tensors["bn1.bias"]
    with pytest.raises(WeightsError, match=r"cannot be loaded .*bn1\.bias"):
        load("timm:resnet10t.c3_in1k")


def test_equal_names_and_shapes_are_not_enough_to_be_ours() -> None:
    """The mean of the tokens, another activation, other heads: the same file, other features."""
    shape = {
        "embed_dim": 96,
        "depth": 3,
        "num_heads": 3,
        "mlp_ratio": 2.0,
        "img_size": 64,
        "num_classes": 0,
    }
    torch.manual_seed(0)

    def find(**changes: Any) -> Any:
        model = timm.models.VisionTransformer(**{**shape, **changes}).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        return timm_format.find_twin(model, (3, 64, 64))

    assert find() == {"arch": "vit_mini", "patch_size": 16, "in_chans": 3, "global_crops_size": 64}
    assert find(global_pool="avg", fc_norm=False) is None
    assert find(act_layer=nn.ReLU) is None
    assert find(num_heads=6) is None


@pytest.mark.usefixtures("timm_mirror")
def test_without_network_timms_names_say_what_to_do() -> None:
    with pytest.raises(WeightsError) as caught:
        read_weights("timm:vit_small_patch16_224.dino")
    text = str(caught.value)
    assert "timm:vit_small_patch16_224.dino cannot be loaded (no network here)" in text
    assert (
        "DINO_WEIGHTS_DIR" in text
        and "vit_small_patch16_224.dino.safetensors" in text
        and "\n" not in text
    )


def test_an_unknown_name_of_timm_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        WeightsError, match=r"vit_smal_patch16_224\.dino is unknown: did you mean vit_small_patch16"
    ):
        read_weights("timm:vit_smal_patch16_224.dino")


def test_an_unknown_tag_of_timm_is_too() -> None:
    with pytest.raises(
        WeightsError,
        match=r"vit_small_patch16_224\.din is unknown: did you mean vit_small_patch16_224\.d",
    ):
        read_weights("timm:vit_small_patch16_224.din")


PLAIN = dict(build().state_dict())
OTHER = {name: tensor + 1 for name, tensor in PLAIN.items()}
LAYER = {"fc.weight": torch.zeros(4, 96), "fc.bias": torch.zeros(4)}


def put(prefix: str, tensors: dict[str, torch.Tensor] = PLAIN) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


WRAPPED: dict[str, tuple[dict[str, Any], str]] = {
    "torch.compile": (put("_orig_mod."), ""),
    "DDP of torch.compile": ({"state_dict": put("module._orig_mod.")}, ""),
    "FSDP": ({"model": put("_fsdp_wrapped_module.")}, ""),
    "DeepSpeed": ({"module": put("")}, ""),
    "Lightning": ({"state_dict": put("model."), "pytorch-lightning_version": "2.0"}, ""),
    "Lightning's DINO": (
        {"state_dict": put("teacher.", PLAIN) | put("student.", OTHER)},
        "networks teacher, student: teacher is used",
    ),
    "lightly's DINO": (
        {
            "state_dict": put("student_backbone.", OTHER)
            | put("student_head.", LAYER)
            | put("teacher_backbone.")
            | put("teacher_head.", LAYER)
        },
        "networks teacher, student: teacher is used",
    ),
    "DINOv2's run": (
        {"model": put("student.backbone.", OTHER) | put("teacher.backbone."), "iteration": 3},
        "networks teacher, student: teacher is used",
    ),
    "DINOv2's teacher": ({"teacher": put("backbone.") | put("dino_head.", LAYER)}, ""),
    "flat names of DINOv2": (put("teacher.backbone."), ""),
    "MoCo": (
        {"state_dict": put("module.encoder_q.") | put("module.encoder_k.", OTHER)},
        "networks encoder_q, encoder_k: encoder_q is used",
    ),
    "MoCo v3": (
        {"state_dict": put("module.base_encoder.") | put("module.momentum_encoder.", OTHER)},
        "networks base_encoder, momentum_encoder: base_encoder is used",
    ),
    "solo-learn": (
        {"state_dict": put("backbone.") | put("momentum_backbone.", OTHER)},
        "networks backbone, momentum_backbone: backbone is used",
    ),
    "a network and its average": (
        {"state_dict": put(""), "state_dict_ema": put("", OTHER)},
        "networks state_dict, state_dict_ema: state_dict is used",
    ),
    "ours": (
        {"student": put("module.backbone.", OTHER), "teacher": put("backbone.")},
        "networks student, teacher: teacher is used",
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_files_of_known_wrappers_are_read_and_the_choice_is_named(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    state, said = WRAPPED[name]
    torch.save(state, tmp_path / "w.pth")
    assert_same(load(tmp_path / "w.pth"), build())
    assert said in caplog.text and ("is used" in caplog.text) == bool(said)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a network and its average", "state_dict_ema"),
        ("MoCo", "encoder_k"),
        ("Lightning's DINO", "student"),
        ("DINOv2's run", "student"),
        ("solo-learn", "momentum_backbone"),
    ],
)
def test_the_other_network_is_read_by_its_name(name: str, key: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[name][0], tmp_path / "w.pth")
    tensors = rename_to_ours(select_network(read_weights(str(tmp_path / "w.pth")), key, "FILE"))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in OTHER.items())


def test_names_of_the_file_are_told_beside_those_that_are_wanted(tmp_path: Path) -> None:
    torch.save(put("trunk."), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError,
        match=r"cls_token \(missing\), .* and 32 more; the file has trunk\.cls_token, .* 32 more;",
    ):
        load_backbone(
            BackboneConfig(arch="vit_mini"),
            WeightsConfig(pretrained_weights=str(tmp_path / "w.pth")),
        )


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(number: float, tmp_path: Path) -> None:
    broken = {**PLAIN, "blocks.1.norm2.bias": torch.full((96,), number)}
    torch.save(broken, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"1 of 42 tensors hold NaN or infinite numbers: blocks\.1\.norm2\.bias"
    ):
        load(tmp_path / "w.pth")


def test_complex_weights_are_refused(tmp_path: Path) -> None:
    torch.save({**PLAIN, "norm.bias": PLAIN["norm.bias"] + 0j}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"norm\.bias \(must hold floating-point numbers, got co"
    ):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_hugging_face_folder_in_shards_is_read(tmp_path: Path, kind: str) -> None:
    folder = make_folder(tmp_path / "hf", to_hugging_face(build().state_dict()))
    whole = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, stem = list(whole), {"safetensors": "model", "bin": "pytorch_model"}[kind]
    shards = {f"{stem}-0000{part}-of-00002.{kind}": names[part - 1 :: 2] for part in (1, 2)}
    for shard, held in shards.items():
        tensors = {name: whole[name] for name in held}
        save = safetensors.torch.save_file if kind == "safetensors" else torch.save
        save(tensors, folder / shard)
    index = folder / f"{stem}.{kind}.index.json"
    places = {name: shard for shard, held in shards.items() for name in held}
    index.write_text(json.dumps({"weight_map": places}))
    assert_same(load(folder), build())
    index.write_text(json.dumps({"weight_map": places | {names[0]: "../elsewhere.bin"}}))
    with pytest.raises(CheckpointError, match=r"must name files of this folder \(got '../elsew"):
        load(folder)
    index.write_text(json.dumps({"weight_map": list(places)}))
    with pytest.raises(CheckpointError, match="must hold a weight_map"):
        load(folder)


def test_the_only_variant_of_a_hugging_face_folder_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    half = {name: t.half() for name, t in to_hugging_face(build().state_dict()).items()}
    folder = make_folder(tmp_path / "hf", half)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    tensors = rename_to_ours(read_weights(str(folder))["state_dict"])
    assert tensors["norm.bias"].dtype == torch.float16
    assert "model.fp16.safetensors is used" in caplog.text
    (folder / "model.bf16.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="keep one of model.bf16.safetensors, model.fp16"):
        load(folder)


def test_safetensors_under_another_name_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(build().state_dict(), tmp_path / "w.pth")
    assert_same(load(tmp_path / "w.pth"), build())


def test_a_pointer_under_the_name_of_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="it is a Git LFS pointer, not the file"):
        read_weights(str(tmp_path / "w.safetensors"))


def test_the_folder_of_a_run_is_its_newest_checkpoint(tmp_path: Path) -> None:
    module = build()
    torch.save({"teacher": module.state_dict(), "args": {}}, tmp_path / "checkpoint.pth")
    assert_same(load(tmp_path, arch="vit_mini", patch_size=16), module)
