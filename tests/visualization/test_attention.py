"""Pictures of attention maps: the files of the command, and the sheet of the demo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

import visualize_attention as script
from dino.cli.options import parse
from dino.data.decode import read_image
from dino.data.photometric import build_normalization
from dino.devices.cpu import CpuDevice
from dino.errors import DataError, OptionError, WeightsError
from dino.models.registry import build_backbone
from dino.models.vit import VisionTransformer
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.folder_lock import hold_folder
from dino.runtime.launch import Launch
from dino.visualization.attention import draw_sheet, open_attention
from dino.visualization.attention_files import name_folders
from dino.visualization.attention_maps import keep_mass
from dino.visualization.config import AttentionConfig
from dino.visualization.pictures import VIRIDIS, color, draw_heat
from dino.visualization.sheets import GAP, LINE, TILE
from tests import hpu_simulator
from tests.running import make_images, on_simulated_card, run_alone, run_pair

TINY = ("--arch", "vit_mini", "--random_weights", "--device", "cpu")
HEADS = 3
CELL = (TILE + GAP + 2 * LINE, TILE + GAP)  # pixels of a tile in a sheet, height and width


def build(channels: int) -> VisionTransformer:
    backbone = build_backbone("vit_mini", patch_size=8, img_size=32, in_chans=channels)
    assert isinstance(backbone, VisionTransformer)
    return backbone.eval()


def build_run() -> Run:
    return Run(device=CpuDevice("fp32"), processes=Processes(Launch(), "gloo", "env://"))


def save_weights(folder: Path, channels: int = 3, patch_size: int = 16) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone("vit_mini", patch_size=patch_size, img_size=64, in_chans=channels)
    torch.save({"teacher": backbone.state_dict()}, folder / "weights.pth")
    return folder / "weights.pth"


def run_main(*words: object) -> None:
    script.main(list(map(str, words)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_has_a_row_an_image_and_a_column_a_head(tmp_path: Path, channels: int) -> None:
    paths = sorted(make_images(tmp_path / "images", 2).iterdir())
    target = tmp_path / "sheets" / "attention.png"
    draw_sheet(
        build(channels), paths, size=32, normalization=build_normalization(channels), target=target
    )
    sheet = np.asarray(Image.open(target))
    assert sheet.shape == (2 * CELL[0], (2 + HEADS) * CELL[1], 3)
    columns = np.split(sheet, 2 + HEADS, axis=1)
    assert all(column[2 * LINE : TILE].std() > 0 for column in columns)


def test_a_sheet_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    paths = sorted(make_images(tmp_path / "images", 1).iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be written"):
        target = tmp_path / "file" / "attention.png"
        draw_sheet(build(3), paths, size=32, normalization=build_normalization(3), target=target)


NAMES = ("head0", "head1", "head2", "mean")


def expected_files(threshold: float | None) -> set[str]:
    files = {"img.png", "attention.npy"} | {
        f"{kind}-{name}.png" for kind in ("attn", "overlay") for name in NAMES
    }
    return files | (
        {f"mask_th{threshold}_{name}.png" for name in NAMES} if threshold is not None else set()
    )


def test_one_image_gives_the_originals_files_and_numbers(shared_data: Path, tmp_path: Path) -> None:
    """The original's steps with torchvision and all queries, beside what the command writes; 333 x
    517 is cut."""
    image, weights = shared_data / "broken" / "good.jpg", save_weights(tmp_path)
    run_main(
        *(
            "--image_path",
            image,
            "--image_size",
            333,
            517,
            "--pretrained_weights",
            weights,
            "--threshold",
            0.6,
        ),
        *("--device", "cpu", "--output_dir", tmp_path / "out"),
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected_files(0.6) | {
        "sheet.png"
    }
    backbone = build_backbone("vit_mini", patch_size=16, img_size=64)
    backbone.load_state_dict(torch.load(weights)["teacher"])
    steps = [transforms.Resize([333, 517]), transforms.ToTensor()]
    steps.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    view = transforms.Compose(steps)(Image.open(image).convert("RGB"))[:, :320, :512]
    assert isinstance(backbone, VisionTransformer)
    with torch.no_grad():
        attention = (
            backbone.eval().get_last_selfattention(view[None])[0, :, 0, 1:].reshape(HEADS, 20, 32)
        )
    found = np.load(tmp_path / "out" / "attention.npy")
    assert found.dtype == np.float32 and found.shape == (HEADS, 20, 32)
    assert np.abs(found - attention.numpy()).max() <= 0.01 * float(
        attention.max()
    )  # Pillow's resize and torch's
    picture = np.asarray(Image.open(tmp_path / "out" / "img.png"))
    for name, values in zip(NAMES, [*found, found.mean(axis=0)], strict=True):
        drawn = np.asarray(Image.open(tmp_path / "out" / f"attn-{name}.png"))
        assert drawn.shape == (320, 512, 3)
        assert np.array_equal(drawn[8::16, 8::16], color(values, VIRIDIS))
        over = np.asarray(Image.open(tmp_path / "out" / f"overlay-{name}.png"))
        assert np.array_equal(over, draw_heat(picture, values))
    mask = np.asarray(Image.open(tmp_path / "out" / "mask_th0.6_head1.png"))
    changed = (mask != picture).any(axis=2)[8::16, 8::16].ravel()
    kept = keep_mass(torch.from_numpy(found[1]), 0.6)
    assert np.array_equal(changed, kept.ravel())


@pytest.mark.parametrize(
    ("size", "grid"), [(("64",), (4, 7)), (("64", "64"), (4, 4)), (("48", "80"), (3, 5))]
)
def test_one_number_keeps_the_aspect_and_two_stretch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[str, ...], grid: tuple[int, int]
) -> None:
    Image.new("RGB", (200, 110)).save(tmp_path / "wide.png")
    words = (
        "--image_path",
        tmp_path / "wide.png",
        "--patch_size",
        16,
        "--output_dir",
        tmp_path / "out",
    )
    run_main(*TINY, *words, "--image_size", *size)
    assert np.load(tmp_path / "out" / "attention.npy").shape == (HEADS, *grid)
    cut = "64 x 116 pixels are not a multiple of the patch size 16: cropped to 64 x 112"
    assert (cut in capsys.readouterr().out) == (len(size) == 1)


def test_a_folder_and_files_give_a_folder_each_and_one_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "in" / "a", 2)
    make_images(tmp_path / "in" / "b", 1, seed=5)
    (tmp_path / "in" / "b" / "notes.txt").write_text("no image")
    Image.new("L", (30, 20), 128).save(tmp_path / "000.JPG", format="JPEG")
    out = tmp_path / "out"
    words = (
        "--image_path",
        tmp_path / "in",
        tmp_path / "000.JPG",
        "--image_size",
        32,
        48,
        "--output_dir",
        out,
    )
    run_main(*TINY, *words, "--json", "-")
    folders = ["000", "001", "000-2", "000-3"]
    assert {path.name for path in out.iterdir()} == {*folders, "sheet.png"}
    assert all(
        {path.name for path in (out / name).iterdir()} == expected_files(None) for name in folders
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [Path(entry["folder"]).name for entry in result["images"]] == folders
    assert [Path(entry["image"]).name for entry in result["images"]] == [
        "000.png",
        "001.png",
        "000.png",
        "000.JPG",
    ]
    assert {tuple(entry["grid"]) for entry in result["images"]} == {(4, 6)}
    assert np.asarray(Image.open(out / "sheet.png")).shape == (
        4 * CELL[0],
        (2 + HEADS) * CELL[1],
        3,
    )


@pytest.mark.parametrize("name", ["img.png", "sheet.png", "attention.npy", "attn-head2.png"])
def test_a_users_picture_stays_and_the_commands_own_are_drawn_again(
    tmp_path: Path, name: str
) -> None:
    """The image that is drawn may be called img.png and lie in the output folder."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / name, format="PNG")
    mine = (tmp_path / name).read_bytes()
    words = (*TINY, "--image_size", 32, 32, "--output_dir", tmp_path)
    with pytest.raises(OptionError, match=rf"{name} was not written by this .*`output_dir`"):
        run_main(*words)
    assert (tmp_path / name).read_bytes() == mine and len(list(tmp_path.iterdir())) == 1
    (tmp_path / name).unlink()
    (tmp_path / "attn-notes.png").write_text("mine")
    for _ in range(2):
        run_main(*words)
    assert (tmp_path / "attn-notes.png").read_text() == "mine"
    with hold_folder(tmp_path, first=True), pytest.raises(OptionError, match="to another run"):
        run_main(*words)


def test_a_folder_of_one_image_gives_a_folder_too(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 1)
    run_main(
        *TINY, "--image_path", tmp_path / "in", "--image_size", 16, "--output_dir", tmp_path / "out"
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"000", "sheet.png"}


@given(
    st.lists(
        st.sampled_from(["a.png", "A.png", "a-2.jpg", "a.jpg", "sheet.png.png", "x/a.png"]),
        max_size=12,
    )
)
def test_no_two_images_share_a_folder(names: list[str]) -> None:
    found = [name.casefold() for name in name_folders([Path(name) for name in names])]
    assert len(set(found)) == len(names) and "sheet.png" not in found


def test_without_an_image_it_draws_one_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        run_main(*TINY, "--image_size", 32, "--output_dir", tmp_path / folder)
    assert (
        "no --image_path: using an image of the built-in demo data set" in capsys.readouterr().out
    )
    first, second = ((tmp_path / folder / "img.png").read_bytes() for folder in ("one", "two"))
    assert first == second and np.asarray(Image.open(tmp_path / "one" / "img.png")).std() > 20


def test_network_and_patch_size_come_from_the_file_unless_they_are_given(tmp_path: Path) -> None:
    for patch_size in (4, 16):
        weights = save_weights(tmp_path, patch_size=patch_size)
        words = ["--pretrained_weights", str(weights), "--device", "cpu"]
        assert open_attention(parse(AttentionConfig, words), build_run()).patch_size == patch_size
    assert parse(AttentionConfig, []).backbone.chosen_patch_size == 8
    assert open_attention(parse(AttentionConfig, TINY), build_run()).patch_size == 8


def test_a_gray_network_reads_gray(tmp_path: Path) -> None:
    weights = save_weights(tmp_path, channels=1)
    words = ("--pretrained_weights", weights, "--device", "cpu", "--image_size", 32)
    run_main(*words, "--output_dir", tmp_path / "out")
    picture = np.asarray(Image.open(tmp_path / "out" / "img.png"))
    assert picture.shape == (32, 32, 3) and np.ptp(picture, axis=2).max() == 0


def test_maps_of_many_channels_need_arrays(tmp_path: Path) -> None:
    weights = save_weights(tmp_path, channels=4)
    words = (
        "--pretrained_weights",
        weights,
        "--device",
        "cpu",
        "--image_size",
        32,
        "--output_dir",
        tmp_path / "out",
    )
    with pytest.raises(DataError, match=r"`image_path` is missing: .* \.npy files of 4 channels"):
        run_main(*words)
    np.save(tmp_path / "scene.npy", np.zeros((40, 40, 4), np.uint8))
    run_main(*words, "--image_path", tmp_path / "scene.npy")
    assert (tmp_path / "out" / "attn-head0.png").exists()


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (("--image_path", "nowhere.png"), DataError, r"^`image_path` nowhere\.png does not exist"),
        (("--image_path", "{}"), DataError, r"^`image_path` .* holds no image \(looked for \.jpg"),
        (
            ("--image_size", "1", "2", "3"),
            OptionError,
            "^`image_size` must be height and width, or the shorter side .got 3 numbers",
        ),
        (("--json", "{}/no/a.json"), OptionError, "^`json` .* cannot be written; name a file"),
        (
            ("--image_size", "4"),
            DataError,
            "must be at least one patch of 8 pixels .got 4 x 4.; use a larger size",
        ),
        (("--image_size", "0"), OptionError, "^--image_size must be >= 1"),
        (("--threshold", "1.5"), OptionError, "^--threshold must be between 0 and 1"),
        (
            ("--arch", "resnet50"),
            OptionError,
            "^`arch` resnet50 has no attention maps; choose a vision transformer: vit_",
        ),
        (
            ("--arch", "vit_smal"),
            OptionError,
            "^`arch` vit_smal is unknown: did you mean vit_small",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    tmp_path: Path, words: tuple[str, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run_main(
            *TINY, *(word.format(tmp_path) for word in words), "--output_dir", tmp_path / "out"
        )


def test_a_network_without_maps_in_the_file_is_refused(tmp_path: Path) -> None:
    backbone = build_backbone("resnet18")
    args = {"arch": "resnet18", "patch_size": 16}
    torch.save({"teacher": backbone.state_dict(), "args": args}, tmp_path / "weights.pth")
    with pytest.raises(OptionError, match="`arch` resnet18 has no attention maps"):
        run_main(
            "--pretrained_weights",
            tmp_path / "weights.pth",
            "--device",
            "cpu",
            "--output_dir",
            tmp_path / "out",
        )


def test_the_encoder_of_a_masked_autoencoder_is_told_by_its_file(tmp_path: Path) -> None:
    words = ["--arch", "mae", "--device", "cpu"]
    weights = ["--pretrained_weights", str(save_weights(tmp_path, patch_size=4))]
    assert open_attention(parse(AttentionConfig, [*words, *weights]), build_run()).patch_size == 4
    with pytest.raises(WeightsError, match="`arch` mae needs `pretrained_weights`"):
        open_attention(parse(AttentionConfig, [*words, "--random_weights"]), build_run())


def test_a_damaged_image_is_named(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "broken" / "truncated_half.jpg"
    with pytest.raises(DataError, match=r"truncated_half\.jpg cannot be decoded"):
        run_main(*TINY, "--image_path", path, "--image_size", 32, "--output_dir", tmp_path / "out")


def test_a_damaged_image_leaves_the_sheet_of_those_before_it(tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "in", 3), tmp_path / "out"
    (images / "002.png").write_bytes(b"no picture")
    words = ("--image_path", images, "--image_size", 32, "--output_dir", out)
    with pytest.raises(DataError, match=r"002\.png cannot be decoded"):
        run_main(*TINY, *words, "--json", tmp_path / "found.json")
    assert np.asarray(Image.open(out / "sheet.png")).shape[0] == 2 * CELL[0]
    found = json.loads((tmp_path / "found.json").read_text())["images"]
    assert [Path(entry["folder"]).name for entry in found] == ["000", "001"]


def test_two_processes_give_the_files_of_one(tmp_path: Path) -> None:
    make_images(tmp_path / "in", 2)
    words = (
        "--pretrained_weights",
        save_weights(tmp_path),
        "--image_path",
        tmp_path / "in",
        "--image_size",
        32,
    )
    words = ("visualize_attention", *words, "--device", "cpu", "--output_dir")
    results = [
        run_alone(tmp_path, *words, tmp_path / "out1"),
        *run_pair(tmp_path, *words, tmp_path / "out2"),
    ]
    assert [result.code for result in results] == [0, 0, 0], results
    one, two = (sorted((tmp_path / name).rglob("*.*")) for name in ("out1", "out2"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two] and len(
        one
    ) == 21


@pytest.mark.skipif(hpu_simulator.why_unavailable() is not None, reason="no simulated hpu")
@pytest.mark.parametrize("lazy", ["true", "false"])
def test_a_card_gives_the_cpus_maps_of_photos(tmp_path: Path, shared_data: Path, lazy: str) -> None:
    photos = sorted((shared_data / "photos" / "val").rglob("*.jpg"))[:2]
    words = (
        "--pretrained_weights",
        save_weights(tmp_path),
        "--image_path",
        *photos,
        "--image_size",
        96,
    )
    run_main(*words, "--device", "cpu", "--output_dir", tmp_path / "cpu")
    more = ("--device", "hpu", "--lazy_mode", lazy, "--output_dir", tmp_path / "hpu")
    result = run_alone(tmp_path, "visualize_attention", *words, *more, prepare=on_simulated_card)
    assert result.code == 0, result.text
    for name in [path.stem for path in photos]:
        card, host = (
            np.load(tmp_path / place / name / "attention.npy") for place in ("hpu", "cpu")
        )
        assert np.abs(card - host).max() <= 1e-6


def test_the_view_is_torchvisions_to_the_level(shared_data: Path) -> None:
    path = shared_data / "broken" / "good.jpg"
    reader = open_attention(parse(AttentionConfig, TINY), build_run())
    for size in ((96,), (64, 120), (480, 480)):
        expected = np.asarray(transforms.Resize(list(size))(Image.open(path).convert("RGB")))
        cut = expected[: expected.shape[0] // 8 * 8, : expected.shape[1] // 8 * 8]
        found = reader.cut(read_image(path), size, path).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, cut)
    assert (
        replace(reader, patch_size=1).cut(read_image(path), None, path).shape
        == read_image(path).shape
    )
