"""Wrong input is refused in one line that names the value and the remedy, before anything is
built."""

import logging
import shutil

import pytest
from PIL import Image

from dino.cli.options import parse
from dino.config import as_recipe
from dino.errors import DataError, DinoError, OptionError
from dino.training.checks import (
    check_network,
    check_options,
    check_scales,
    check_sizes,
    check_warmups,
)
from dino.training.config import TrainConfig


def options_of(*words):
    return parse(TrainConfig, [str(word) for word in words])


@pytest.fixture
def images(tmp_path):
    """A folder of eight images in two classes."""
    for place in range(8):
        path = tmp_path / "images" / f"class{place % 2}" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (place, 0, 0)).save(path)
    return tmp_path / "images"


@pytest.fixture
def words(images, tmp_path):
    """A good command line; later words win."""
    return [
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "out",
        "--batch_size_per_device",
        4,
        "--arch",
        "vit_mini",
    ]


def test_good_options_give_the_images_and_make_the_output_folder(words, tmp_path):
    assert len(check_options(options_of(*words))) == 8
    assert (tmp_path / "out").is_dir()
    assert list((tmp_path / "out").iterdir()) == []


def test_the_images_are_described_before_anything_is_built(words, images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (images / "class0" / ".hidden.png").touch()
    images.rename(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    check_options(options_of(*words, "--data_path", tmp_path, "--eval_knn_every", 1))
    assert caplog.messages == [
        f"{start} folder {tmp_path}/{split}, 8 images in 2 classes; passed over:"
        " 1 hidden or of the system (class0/.hidden.png)"
        for start, split in (("source:", "train"), ("source of the k-NN score:", "val"))
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("recipe.yaml", "lr: 0.1  # mine\n"),
        ("recipe.yaml", ""),
        ("teacher_backbone.pth", "of another run"),
        ("teacher_backbone.safetensors", "of another run"),
        ("checkpoint0000.pth", "of another run"),
        ("checkpoint0300.pth", "of another run"),
        ("checkpoint_best.pth", "of another run"),
    ],
)
def test_a_file_that_the_run_would_replace_is_refused(words, tmp_path, name, text):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text(text)
    reason = rf"{name} .* would be replaced; move it away, or name another `output_dir`"
    with pytest.raises(OptionError, match=reason):
        check_options(options_of(*words))
    assert (folder / name).read_text() == text and len(list(folder.iterdir())) == 1


def test_the_files_of_the_run_itself_are_replaced(words, tmp_path):
    """Those of the original too: its checkpoint is continued."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(as_recipe(TrainConfig(), ()))
    for name in ("checkpoint_previous.pth", "checkpoint0000.pth", "teacher_backbone.pth"):
        (folder / name).write_text("ours")
    check_options(options_of(*words))


def test_the_defaults_go_together():
    for check in (check_scales, check_sizes, check_warmups):
        check(options_of())


@pytest.mark.parametrize("name", ["global_crops_scale", "local_crops_scale"])
@pytest.mark.parametrize("scale", [("0.8", "0.4"), ("0", "0.5"), ("0.5", "1.1"), ("nan", "1")])
def test_a_range_of_areas_that_is_none_is_refused(name, scale):
    with pytest.raises(OptionError, match=rf"^`{name}` must be two rising numbers above 0"):
        check_scales(options_of(f"--{name}", *scale))


@pytest.mark.parametrize("name", ["global_crops_size", "local_crops_size"])
def test_a_crop_smaller_than_a_patch_is_refused(name):
    with pytest.raises(OptionError, match=rf"^`{name}` must be at least `patch_size` 16 \(got 8\)"):
        check_sizes(options_of(f"--{name}", 8))


def test_the_size_of_local_crops_does_not_matter_where_there_are_none():
    check_sizes(options_of("--local_crops_number", 0, "--local_crops_size", 8))


def test_a_crop_that_patches_do_not_fill_is_named_and_used(caplog):
    check_sizes(options_of("--global_crops_size", 230))
    assert "`global_crops_size` 230: patches of 16 fill only 224 pixels" in caplog.text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("vit_b_16",), r"^`arch` vit_b_16 cannot take 96-pixel crops: Wrong image height!"),
        (
            ("timm:gmixer_12_224", "--global_crops_size", 96),
            r"^`arch` timm:gmixer_12_224 cannot take 96-pixel crops: Input height \(96\) doesn't",
        ),
        (
            ("resnet18", "--drop_path_rate", 0.2),
            r"^`drop_path_rate` 0.2 does nothing: `arch` resnet18 has no stochastic depth; leave",
        ),
        (
            (
                *("resnet18", "--local_crops_size", 32, "--local_crops_number", 1),
                *("--batch_size_per_device", 1),
            ),
            r"^`arch` resnet18 cannot train on 1 crop of 32 pixels at a time: Expected more than 1 "
            r".*; raise `batch_size_per_device`$",
        ),
    ],
)
def test_a_network_that_does_not_train_on_the_crops_is_refused_before_images_are_looked_for(
    words, line, tmp_path
):
    options = options_of("--arch", *words, "--data_path", tmp_path / "no_images")
    with pytest.raises(OptionError, match=line) as caught:
        check_options(options)
    assert "\n" not in str(caught.value)


def test_batch_norm_has_the_images_of_all_processes(monkeypatch):
    words = ("--arch", "resnet18", "--local_crops_size", 32, "--local_crops_number", 1)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_network(options_of(*words, "--batch_size_per_device", 1))


@pytest.mark.parametrize(
    "words",
    [
        ("timm:test_vit", "--drop_path_rate", 0.2),
        ("timm:mobilenetv3_small_050", "--drop_path_rate", 0),
        ("efficientnet_b0", "--drop_path_rate", 0.2),
        ("resnet18", "--drop_path_rate", 0),
        ("resnet18",),
        ("vit_mini", "--drop_path_rate", 0.2),
    ],
)
def test_a_network_that_trains_on_the_crops_passes(words):
    check_network(options_of("--arch", *words))


def test_patches_do_not_matter_to_other_networks(caplog):
    check_sizes(options_of("--arch", "resnet50", "--local_crops_size", 8))
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["warmup_epochs", "warmup_teacher_temp_epochs"])
def test_an_explicit_warm_up_longer_than_the_run_is_refused_with_both_values(name):
    with pytest.raises(OptionError, match=rf"^`{name}` 6 is longer than the run of `epochs` 5"):
        check_warmups(options_of("--epochs", 5, f"--{name}", 6))
    check_warmups(options_of("--epochs", 5, f"--{name}", 5))


def test_a_warm_up_of_a_recipe_is_explicit_too(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("warmup_epochs: 6\nepochs: 5\n")
    with pytest.raises(OptionError, match="`warmup_epochs` 6"):
        check_warmups(options_of("--config", recipe))


def test_a_default_warm_up_may_be_longer(words):
    check_options(options_of(*words, "--epochs", 2))


def test_without_data_path_the_line_names_the_demo(tmp_path):
    with pytest.raises(DinoError, match="`data_path` demo") as caught:
        check_options(options_of("--output_dir", tmp_path / "out"))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_folder_without_images_is_refused_by_name(words, tmp_path, kind):
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    with pytest.raises(DataError, match=str(folder)) as caught:
        check_options(options_of(*words, "--data_path", folder))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_fewer_images_than_a_batch_are_refused_with_both_numbers(words, images, tmp_path):
    with pytest.raises(
        DataError, match=rf"{images} holds 8 images, less than one global batch of 9; lower `batch"
    ):
        check_options(options_of(*words, "--batch_size_per_device", 9))
    assert not (tmp_path / "out").exists()


def test_the_batch_that_counts_is_that_of_all_processes_and_accumulated_steps(words, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(check_options(options_of(*words))) == 8
    with pytest.raises(DataError, match="less than one global batch of 16"):
        check_options(options_of(*words, "--accumulate_steps", 2))


def test_an_unknown_architecture_names_the_nearest(words):
    with pytest.raises(OptionError, match=r"^`arch` vit_smal is unknown: did you mean vit_small\?"):
        check_options(options_of(*words, "--arch", "vit_smal"))


def test_an_output_folder_that_cannot_be_made_is_refused_by_name(words, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OptionError, match=rf"^`output_dir` {tmp_path}/file/out cannot be written to"
    ):
        check_options(options_of(*words, "--output_dir", tmp_path / "file" / "out"))


def test_online_knn_without_a_validation_folder_is_refused_before_anything_is_built(
    words, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    with pytest.raises(DataError):
        check_options(options_of(*words, "--eval_knn_every", 1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("knn",), "`keep_best` knn needs the k-NN score, and `eval_knn_every` is 0; set"),
        (
            ("own_view", "--own_view_images", 0),
            "needs the own-view score, and `own_view_images` is",
        ),
        (("own_view", "--synthetic_data"), "needs the own-view score, and `synthetic_data` has no"),
    ],
)
def test_the_best_by_a_score_that_is_off_is_refused(more, text):
    with pytest.raises(OptionError, match=text):
        check_options(options_of("--keep_best", *more))


def test_sinks_are_refused_before_images_are_looked_for(monkeypatch):
    with pytest.raises(OptionError, match="`log_to` none stands alone"):
        check_options(options_of("--log_to", "jsonl", "none"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(OptionError, match="`log_to` wandb needs the package wandb"):
        check_options(options_of("--log_to", "wandb"))


def test_one_sink_in_a_recipe_needs_no_list(tmp_path):
    for text in ("jsonl", "[jsonl]"):
        (tmp_path / "recipe.yaml").write_text(f"log_to: {text}\n")
        assert options_of("--config", tmp_path / "recipe.yaml").run.log_to == ("jsonl",)
    assert options_of("-o", "log_to=[]").run.log_to == ()
