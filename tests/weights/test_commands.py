"""Commands take weights in every form, on every device and with any number of processes, and give
one answer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dino.cli.convert import convert_huggingface, convert_paddle, convert_timm
from tests import hpu_simulator
from tests.running import make_images, on_simulated_card, run_alone, run_pair, train

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def forms(weights: Path, tmp_path: Path, command: Command) -> dict[str, Path]:
    """The same weights four times."""
    found = {"ours": weights, "paddle": tmp_path / "w.pdparams", "timm": tmp_path / "w.safetensors"}
    found["hf"] = tmp_path / "hf"
    for name, main in (
        ("paddle", convert_paddle),
        ("timm", convert_timm),
        ("hf", convert_huggingface),
    ):
        assert command(main, weights, found[name])[0] == 0
    return found


def words(data: Path, path: Path, output: Path, device: str) -> list[object]:
    fixed = ["--num_workers", 0, "--batch_size_per_gpu", 3, "--device", device]
    return ["--data_path", data, "--pretrained_weights", path, "--output", output, *fixed]


def test_features_are_the_same_for_every_form_device_and_number_of_processes(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    if hpu_simulator.why_unavailable():
        pytest.skip(f"no simulated hpu: {hpu_simulator.why_unavailable()}")
    data, script = make_images(tmp_path / "data", 7), "extract_features"
    given = {
        name: words(data, path, tmp_path / f"{name}.npz", "cpu") for name, path in forms.items()
    }
    for name in ("ours", "timm"):
        ended = run_alone(tmp_path / name, script, *given[name])
        assert ended.code == 0 and "42 of 42 backbone tensors loaded into vit_mini" in ended.text, (
            ended.text
        )
    ended = run_alone(
        tmp_path / "one", script, *given["paddle"], "--device", "hpu", prepare=on_simulated_card
    )
    assert ended.code == 0 and "device: hpu" in ended.text, ended.text
    prepare = (on_simulated_card, on_simulated_card)
    pair = run_pair(tmp_path / "two", script, *given["hf"], "--device", "hpu", prepare=prepare)
    assert [ended.code for ended in pair] == [0, 0], pair[0].text
    found = {name: np.load(tmp_path / f"{name}.npz")["features"] for name in forms}
    assert found["ours"].shape == (7, 96) and found["ours"].std(axis=0).min() > 0
    for name, features in found.items():
        # A folder and our file say how images are normalized, the others do not.
        assert np.allclose(
            features, found["ours" if name in {"ours", "hf"} else "timm"], atol=1e-4
        ), name


def test_a_training_run_starts_from_another_projects_folder(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    data, folder = make_images(tmp_path / "data", 8), forms["hf"]
    run = (
        "--data_path",
        data,
        "--output_dir",
        tmp_path / "out",
        "--epochs",
        1,
        "--init_from",
        folder,
    )
    ended = train(tmp_path, *run, "--in_chans", 1)
    assert ended.code == 0, ended.text
    assert f"{folder}: first layer from 3 to 1 channels, summed" in ended.text
    assert f"{folder}: patches from 16 to 8 pixels, resampled" in ended.text
    assert (
        f"--init_from {folder}: 42 of 42 backbone tensors; the head starts from scratch"
        in ended.text
    )
