"""A format is one file: what lies in the folder is read, recognized, written and offered by the
commands."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dino
from dino.cli.__main__ import main
from dino.errors import CheckpointError
from dino.weights import formats
from dino.weights.formats import list_converters, list_formats
from dino.weights.read import find_format, is_name, read_weights
from tests.weights.conftest import equal_tensors

Command = Callable[..., tuple[int, str]]

NEW = '''
"""Weights of an invented project: numpy's archives, each name with `toy/` in front and the step of training beside."""

from dino.weights.formats import Format


def read(word):
    import numpy as np
    import torch

    from dino.errors import CheckpointError

    try:
        with np.load(word, allow_pickle=False) as stored:
            return {"state_dict": {name: torch.from_numpy(stored[name]) for name in stored}}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{word} is damaged or no archive: {error}") from error


def rename(tensors):
    is_toy = any(name.startswith("toy/") for name in tensors)
    return {name.removeprefix("toy/"): tensor for name, tensor in tensors.items()} if is_toy else None


def write(network, target):
    import numpy as np

    from dino.files import atomic_write

    arrays = {f"toy/{name}": tensor.numpy() for name, tensor in network.tensors.items()}
    with atomic_write(target, "`file_out`") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays, **{"toy/step": np.zeros(1)})


FORMAT = Format(
    detect=lambda path: path.suffix == ".toy",
    read=read,
    rename=rename,
    keys=("invented",),
    beside="step$",
    kind=lambda contents: "toy's archive" if contents.word.endswith(".toy") else "",
    write=write,
    ending=".toy",
    tell=lambda network, target: f"toy.load({target.name!r})",
)
'''


@pytest.fixture(autouse=True)
def arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of this process, which a command replaces."""
    monkeypatch.setattr(sys, "argv", ["dino"])


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One more file in the folder of formats, and nothing else."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "toy.py").write_text(NEW, encoding="utf-8")
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path / "more")])
    importlib.invalidate_caches()
    yield
    sys.modules.pop(f"{formats.__name__}.toy", None)
    vars(formats).pop("toy", None)


@pytest.mark.usefixtures("toy")
def test_a_new_format_is_written_recognized_and_read_by_every_command(
    weights: Path, tmp_path: Path, command: Command
) -> None:
    out, back = tmp_path / "out.toy", tmp_path / "back.pth"
    code, text = command(main, "convert", weights, out, "--to", "toy")
    assert code == 0 and "toy.load('out.toy')" in text and "42 of 42 tensors matched" in text
    code, text = command(main, "inspect", out)
    assert code == 0 and f"{out}: toy's archive\n" in text and "vit_mini, patch size 16" in text
    assert "also step (1)" in text
    assert command(main, "convert", out, back, "--to", "toy")[0] == 0
    original = dino.load(weights)
    assert equal_tensors(dino.load(out), original) and equal_tensors(dino.load(back), original)


@pytest.mark.usefixtures("toy")
def test_the_tensors_of_a_new_format_are_known_in_torchs_files_too(
    weights: Path, tmp_path: Path
) -> None:
    original = dino.load(weights)
    named = {f"toy/{name}": tensor for name, tensor in original.state_dict().items()}
    torch.save({"invented": named}, tmp_path / "toy.pth")
    assert equal_tensors(dino.load(tmp_path / "toy.pth"), original)


@pytest.mark.usefixtures("toy")
def test_a_new_format_is_in_the_help_and_before_the_others(command: Command) -> None:
    code, text = command(main, "convert", "--help")
    assert code == 0 and "--to {toy,huggingface,timm," in text
    assert next(iter(list_formats())) == "toy"


@pytest.mark.usefixtures("toy")
def test_the_files_of_a_new_format_may_be_damaged_and_name_no_folder(
    weights: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "bad.toy").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"bad\.toy is damaged or no archive"):
        read_weights(str(tmp_path / "bad.toy"))
    code, text = command(main, "convert", weights, tmp_path / "folder.toy", "--to", "huggingface")
    assert code == 2 and "folder.toy has an unsupported ending" in text


def test_without_the_file_nobody_knows_the_format(
    weights: Path, tmp_path: Path, command: Command
) -> None:
    assert "toy" not in list_formats()
    code, text = command(main, "convert", weights, tmp_path / "out.toy", "--to", "toy")
    assert code == 2 and f"--to must be one of {', '.join(list_converters())} (got toy)" in text


def test_formats_are_asked_in_a_fixed_order() -> None:
    assert list(list_formats()) == [
        "dinov2",
        "hub",
        "timm_folder",
        "huggingface",
        "onnx",
        "ipu",
        "mae",
        "original",
        "timm",
        "paddle",
        "wrapped",
        "export",
        "safetensors",
    ]
    both_ways = ["huggingface", "timm", "paddle", "safetensors"]
    assert list(list_converters()) == [*both_ways, "hub", "onnx", "ipu", "export"]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("hub:dino_vits16", "original"),
        ("timm:resnet18", "timm"),
        ("hub:x.pdparams", "original"),
        ("folder.pdparams", "huggingface"),
        ("file.pdparams", "paddle"),
        ("file.safetensors", None),
        ("file.pth", None),
    ],
)
def test_a_word_is_claimed_by_its_prefix_then_by_its_path(
    word: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pdparams").mkdir()
    assert find_format(word) is (list_formats()[name] if name else None)
    assert is_name(word) == (":" in word)


def test_formats_are_listed_without_torch() -> None:
    heavy = "{'torch', 'numpy', 'safetensors', 'timm', 'onnx'}"
    text = f"import sys; from dino.weights import formats; formats.list_formats(); print({heavy} & {{*sys.modules}})"
    root = Path(dino.__file__).parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", text], cwd=root, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "set()\n"), ended.stderr


def test_networks_that_lie_in_one_dictionary_are_the_ipu_ports_alone() -> None:
    split: Any = list_formats()["ipu"].split
    tensors = {"student.a": torch.zeros(1), "teacher.a": torch.ones(1)}
    assert split(tensors) == {}
    half = {"teacher_head.last_layer1.b": torch.ones(2)}
    found = split({**tensors, **half, "stray": torch.zeros(3)})
    assert {network: sorted(part) for network, part in found.items()} == {
        **{"student": ["a", "stray"], "teacher": ["a", "head.last_layer1.b", "stray"]},
    }
