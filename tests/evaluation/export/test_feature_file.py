"""extract_features.py: every image's row under its name, of the layers asked for, whoever shares
the work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import extract_features
from dino.data.crops import center_crop
from dino.data.decode import read_image
from dino.data.photometric import build_normalization
from dino.errors import DataError, OptionError
from dino.evaluation.export import feature_file
from dino.models.registry import build_backbone
from tests import hpu_simulator
from tests.running import make_images, make_labelled, on_simulated_card, run_pair

SIZE, COUNT = 16, 14  # side of a view, images in all
NAMES = [
    f"{split}/{name}/{n:03}.png"
    for split, count in (("train", 5), ("val", 2))
    for name in ("ant", "bee")
    for n in range(count)
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of two classes, noise."""
    return make_labelled(tmp_path_factory.mktemp("images"), {"train": 5, "val": 2})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny untrained network."""
    torch.manual_seed(0)
    args = {"arch": "vit_mini", "patch_size": 8, "global_crops_size": SIZE}
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(
        {
            "teacher": build_backbone("vit_mini", patch_size=8, img_size=SIZE).state_dict(),
            "args": args,
        },
        path,
    )
    return path


@pytest.fixture
def words(images: Path, weights: Path) -> list[str]:
    """What every run of these tests says."""
    files = ["--data_path", str(images), "--pretrained_weights", str(weights)]
    return [*files, "--num_workers", "0", "--batch_size_per_device", "4"]


def extract(output: Path, *words: object) -> dict[str, np.ndarray]:
    """Run the command; gives the archive that it wrote."""
    extract_features.main([*map(str, words), "--device", "cpu", "--output", str(output)])
    with np.load(output) as file:
        return dict(file)


def compute_tokens(images: Path, weights: Path, names: list[str] = NAMES) -> list[np.ndarray]:
    """Normalised tokens (N, 5, 96) of each of the three blocks."""
    model = build_backbone("vit_mini", patch_size=8, img_size=SIZE).eval()
    model.load_state_dict(torch.load(weights)["teacher"])
    views = torch.stack([center_crop(read_image(images / name), SIZE) for name in names])
    with torch.no_grad():
        return [
            layer.numpy()
            for layer in model.get_intermediate_layers(build_normalization(3)(views), 3)
        ]


def test_each_image_has_the_networks_output(
    words: list[str], images: Path, weights: Path, tmp_path: Path
) -> None:
    found = extract(tmp_path / "f.npz", *words, "--json", tmp_path / "told")
    assert found["names"].tolist() == NAMES  # of all splits, in order
    assert found["classes"].tolist() == ["ant", "bee"]
    assert found["labels"].tolist() == [name.split("/")[1] == "bee" for name in NAMES]
    assert found["features"].dtype == np.float32
    np.testing.assert_allclose(
        found["features"], compute_tokens(images, weights)[-1][:, 0], atol=1e-5
    )
    assert {path.name for path in tmp_path.iterdir()} == {"f.npz", "told"}
    told = json.loads((tmp_path / "told").read_text())
    assert (told["images"], told["arrays"]) == (COUNT, {"features": [COUNT, 96]})


def test_layers_and_patches_are_those_asked_for(
    words: list[str], images: Path, weights: Path, tmp_path: Path
) -> None:
    tokens = compute_tokens(images, weights)
    found = extract(tmp_path / "f.npz", *words, "--layers", 3, 1, "--patches")
    assert {name for name in found if "_" in name} == {
        "features_1",
        "features_3",
        "patches_1",
        "patches_3",
    }
    for layer in (1, 3):
        np.testing.assert_allclose(found[f"features_{layer}"], tokens[layer - 1][:, 0], atol=1e-5)
        grid = tokens[layer - 1][:, 1:].reshape(COUNT, 2, 2, 96)
        np.testing.assert_allclose(found[f"patches_{layer}"], grid, atol=1e-5)
    last = extract(tmp_path / "f.npz", *words, "--patches")
    assert np.array_equal(last["features"], found["features_3"])
    assert np.array_equal(last["patches"], found["patches_3"])
    only = extract(tmp_path / "f.npz", *words, "--layers", 2)
    np.testing.assert_allclose(only["features_2"], tokens[1][:, 0], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 14, 100])
def test_rows_do_not_depend_on_the_batch(batch_size: int, words: list[str], tmp_path: Path) -> None:
    expected = extract(tmp_path / "f.npz", *words)["features"]
    found = extract(tmp_path / "f.npz", *words, "--batch_size_per_gpu", batch_size)["features"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "hpu"])
@pytest.mark.parametrize("count", [1, 7, COUNT])
def test_two_processes_write_what_one_writes(
    device: str, count: int, words: list[str], images: Path, tmp_path: Path
) -> None:
    """Batches of two, so that the last turn finds one process, both or neither with rows left."""
    reason = hpu_simulator.why_unavailable()
    if device == "hpu" and (reason or count != 7):
        pytest.skip(reason or "one count is enough there")
    (tmp_path / "list.txt").write_text("".join(f"{images / name}\n" for name in NAMES[:count]))
    words = [*words, "--data_path", str(tmp_path / "list.txt"), "--patches"]
    one = extract(tmp_path / "one.npz", *words)
    prepare = on_simulated_card if device == "hpu" else None
    more = ("--output", tmp_path / "two.npz", "--device", device, "--batch_size_per_device", 2)
    results = run_pair(tmp_path, "extract_features", *words, *more, prepare=(prepare, prepare))
    assert [result.code for result in results] == [0, 0], results
    with np.load(tmp_path / "two.npz") as two:
        assert two.files == list(one)
        assert two["names"].tolist() == one["names"].tolist()
        for name in ("features", "patches"):
            assert len(two[name]) == count
            np.testing.assert_allclose(two[name], one[name], atol=1e-5)


@pytest.mark.parametrize("kind", [".safetensors", ".csv", ".parquet"])
def test_every_kind_of_file_is_written(kind: str, words: list[str], tmp_path: Path) -> None:
    extract_features.main([*words, "--device", "cpu", "--output", str(tmp_path / f"f{kind}")])
    assert [path.name for path in tmp_path.iterdir()] == [f"f{kind}"]
    if kind == ".safetensors":
        expected = extract(tmp_path / "f.npz", *words)
        assert np.array_equal(
            load_file(tmp_path / "f.safetensors")["features"], expected["features"]
        )


def test_a_flat_folder_has_no_labels(words: list[str], tmp_path: Path) -> None:
    found = extract(tmp_path / "f.npz", *words, "--data_path", make_images(tmp_path / "flat", 3))
    assert found["names"].tolist() == ["000.png", "001.png", "002.png"]
    assert "labels" not in found and found["classes"].size == 0


def test_other_networks_give_one_vector(images: Path, tmp_path: Path) -> None:
    words = (
        "--data_path",
        images / "val",
        "--random_weights",
        "--arch",
        "shufflenet_v2_x0_5",
        "--num_workers",
        0,
    )
    assert extract(tmp_path / "f.npz", *words)["features"].shape == (4, 1024)
    with pytest.raises(
        OptionError, match="`patches` and `layers` need a vision transformer; shufflenet_v2_x0_5"
    ):
        extract(tmp_path / "f.npz", *words, "--patches")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            ("--output", "f.txt"),
            r"`output` f\.txt must end in \.npz, \.safetensors, \.parquet, \.csv",
        ),
        (
            ("--output", "nowhere/f.npz"),
            r"`output` nowhere/f\.npz cannot be written; name a file in an existing",
        ),
        (("--output", "f.csv", "--patches"), r"`patches` does not fit into a \.csv"),
        (
            ("--output", "f.npz", "--layers", "4"),
            r"`layers` must be at most 3, the blocks of vit_mini \(got 4\)",
        ),
        (("--output", "f.npz", "--layers", "0"), "--layers must be >= "),
        (("--output", "f.npz", "--data_path", "nowhere"), "`data_path` nowhere does not exist"),
        ((), "`output` is missing: name a file that ends in"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    words: list[str],
    more: tuple[str, ...],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OptionError, DataError), match=named):
        extract_features.main([*words, "--device", "cpu", *more])
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_its_library_is_refused_before_the_work(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="needs pyarrow: pip install pyarrow, or write .npz"):
        extract_features.main([*words, "--device", "cpu", "--output", str(tmp_path / "f.parquet")])


def test_a_disk_that_is_too_small_is_refused_with_both_sizes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(
        OptionError,
        match=r"needs 5\.376e-05 GB .*\(2 x 14 images x 480 float32\) and 5e-05 GB are free",
    ):
        extract(tmp_path / "f.npz", *words, "--patches")
    assert extract(tmp_path / "f.npz", *words)["features"].shape == (COUNT, 96)


def test_a_bad_image_leaves_the_old_file_and_nothing_else(
    words: list[str], images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "val" / "bee" / "001.png").write_bytes(b"no picture")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f.npz").write_text("the old one")
    with pytest.raises(DataError, match=r"val/bee/001\.png cannot be decoded"):
        extract(tmp_path / "out" / "f.npz", *words, "--data_path", tmp_path / "images")
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["the old one"]


def test_a_name_that_is_no_text_is_refused(words: list[str], tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", 1)
    os.rename(folder / "000.png", os.fsencode(folder) + b"/\xff.png")
    with pytest.raises(DataError, match="which is not UTF-8; rename it"):
        extract(tmp_path / "f.npz", *words, "--data_path", folder)


def test_shared_photos_have_rows_in_order(
    words: list[str], shared_data: Path, weights: Path, tmp_path: Path
) -> None:
    folder = shared_data / "photos" / "val"
    found = extract(
        tmp_path / "f.npz", *words, "--data_path", folder, "--batch_size_per_device", 64
    )
    names = found["names"].tolist()
    assert names == sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.jpg"))
    some = slice(3, None, 97)
    expected = compute_tokens(folder, weights, names[some])[-1][:, 0]
    np.testing.assert_allclose(found["features"][some], expected, atol=1e-5)


def test_a_stray_image_takes_the_labels_away_with_a_line(
    words: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, tmp_path / "data")
    shutil.copy(images / NAMES[0], tmp_path / "data" / "stray.png")
    found = extract(tmp_path / "f.npz", *words, "--data_path", tmp_path / "data")
    assert "labels" not in found and "no labels are written: " in capsys.readouterr().out


def test_scratch_files_have_their_space_from_the_start(tmp_path: Path) -> None:
    array = feature_file._make_array(tmp_path / "a.npy", (1000, 64))
    assert (
        array.shape == (1000, 64) and (tmp_path / "a.npy").stat().st_blocks * 512 >= 4 * 64 * 1000
    )
