"""The native crops equal torch's to the bit, and every failure leads back to torch."""

import ctypes
import functools
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.data import native
from dino.data.crops import Box, CropRecipe, build_rng, cut_crops, cut_views
from dino.data.datasets import CropDataset, Share
from dino.data.image_source import ImageSource
from dino.data.loaders import build_train_loader
from dino.data.native import NativeCrops, NativeError, choose_cut, open_native
from dino.data.sources import open_images
from tests.running import losses_of, make_images, train

RECIPE = CropRecipe(global_size=32, local_size=16, local_views=3)
SIDES = (1, 7, 16, 32, 96, 224)
# Compiled for any CPU of the kind, and for the narrower vectors of this one.
PLAIN = {"portable": ["-march=x86-64"], "256 bits": ["-march=native", "-mno-avx512f"]}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the library, built once."""
    folder = tmp_path_factory.mktemp("native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DINO_CACHE_DIR", str(folder))
        try:
            native.find_compiler()
        except NativeError as error:
            pytest.skip(str(error))
        open_native()
    return folder


@pytest.fixture
def switched_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the library, for a process that uses it."""
    monkeypatch.setenv("DINO_CACHE_DIR", str(cache))
    monkeypatch.delenv("DINO_NATIVE", raising=False)
    return cache / "native"


@pytest.fixture(scope="session")
def built(cache: Path) -> NativeCrops:
    return NativeCrops(next((cache / "native").glob("*.so")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    root = tmp_path_factory.mktemp("images")
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (40 + index, 37, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index:02}.png")
    return open_images(str(root))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def draw_image(height: int, width: int, channels: int, seed: int, extreme: bool) -> torch.Tensor:
    """Random levels, or only black and white, which overshoot the most."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    levels = (levels > 127) * 255 if extreme else levels
    return torch.from_numpy(levels.astype(np.uint8)).permute(2, 0, 1)


@st.composite
def images_with_crops(draw: st.DrawFn) -> tuple[torch.Tensor, list[tuple[Box, int]]]:
    height, width = draw(st.integers(1, 330)), draw(st.integers(1, 330))
    channels = draw(st.sampled_from((1, 2, 3, 3, 3, 4, 5)))
    image = draw_image(height, width, channels, draw(st.integers(0, 999)), draw(st.booleans()))
    crops = []
    for _ in range(draw(st.integers(1, 5))):
        tall, wide = draw(st.integers(1, height)), draw(st.integers(1, width))
        top, left = draw(st.integers(0, height - tall)), draw(st.integers(0, width - wide))
        crops.append(((top, left, tall, wide), draw(st.sampled_from(SIDES))))
    return image, crops


@given(drawn=images_with_crops())
def test_crops_equal_those_of_torch_to_the_bit(
    built: NativeCrops, drawn: tuple[torch.Tensor, list[tuple[Box, int]]]
) -> None:
    assert np.array_equal(built(*drawn), cut_views(*drawn))


@pytest.mark.skipif(native.platform.machine() != "x86_64", reason="flags of x86-64 compilers")
@pytest.mark.parametrize("kind", PLAIN)
def test_crops_are_equal_on_other_cpus_too(cache: Path, tmp_path: Path, kind: str) -> None:
    command = [native.find_compiler(), *native.FLAGS, *PLAIN[kind]]
    source = Path(native.__file__).with_name("crops.cpp")
    other = native.build(command, source, tmp_path / "crops.so")
    native.compare(other)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        height, width = rng.integers(20, 300, 2).tolist()
        image = draw_image(height, width, 3, seed, bool(seed % 2))
        crops = [((seed % 7, seed % 5, height - 13, width - 11), side) for side in SIDES]
        assert np.array_equal(other(image, crops), cut_views(image, crops))


def test_a_crop_that_the_library_leaves_out_is_made_by_torch(
    built: NativeCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a weight too close to a tie, which is too rare to find among usual sizes.
    asked, crop, real = [], NativeCrops(built.path), native.resize_crop

    def leave_the_second_out(*arguments: int) -> int:
        failed = built.function(*arguments)
        ctypes.memset(arguments[-2] + 16 * 16 * 3, 0, 24 * 24 * 3)
        ctypes.memset(arguments[-1] + 1, 1, 1)
        return failed

    crop.function = leave_the_second_out
    monkeypatch.setattr(native, "resize_crop", lambda *rest: asked.append(rest[1]) or real(*rest))
    image, other = draw_image(40, 40, 3, 0, True), (0, 0, 40, 39)
    crops = [(other, 16), ((3, 2, 5, 5), 24), (other, 32)]
    assert np.array_equal(crop(image, crops), cut_views(image, crops))
    assert asked == [(3, 2, 5, 5)]


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), key=st.tuples(*[st.integers(0, 99)] * 3)
)
def test_all_views_of_an_image_are_equal(
    built: NativeCrops, height: int, width: int, key: tuple[int, int, int]
) -> None:
    image = draw_image(height, width, 3, key[0], False)
    expected = cut_crops(image, RECIPE, build_rng(*key))
    crops = cut_crops(image, RECIPE, build_rng(*key), cut=built)
    assert all(torch.equal(one, two) for one, two in zip(crops, expected, strict=True))


@pytest.mark.parametrize(
    "box", [(-1, 0, 5, 5), (0, 0, 21, 5), (0, 26, 5, 5), (0, 0, 0, 5), (2**31 - 1, 0, 5, 5)]
)
def test_a_box_outside_the_image_is_refused(built: NativeCrops, box: Box) -> None:
    with pytest.raises(ValueError, match="is not inside the image"):
        built(draw_image(20, 30, 3, 0, False), [((0, 0, 20, 30), 8), (box, 8)])


def test_images_that_are_not_contiguous_are_read_correctly(built: NativeCrops) -> None:
    image = draw_image(100, 120, 3, 0, False)
    crops: list[tuple[Box, int]] = [((1, 2, 30, 40), 16)]
    for view in (image.contiguous(), image.flip(2), image[:, ::2, ::2], image[:, 5:, 7:]):
        assert np.array_equal(built(view, crops), cut_views(view, crops))


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_loader_processes_make_the_same_batches(
    switched_on: Path,
    source: ImageSource,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
    start: str,
) -> None:
    def read(switch: str) -> list:
        monkeypatch.setenv("DINO_NATIVE", switch)
        dataset = CropDataset(source, RECIPE, seed=1, skip_bad=False)
        loader = build_train_loader(
            dataset, batch_size=4, share=Share(), workers=2, pin_memory=False, start=start
        )
        return list(loader.read(0))

    batches, expected = read("1"), read("0")
    texts = [record.message for record in log.records if "crops by" in record.message]
    assert len(texts) == 2 and texts[1] == "crops by torch: DINO_NATIVE=0"
    assert texts[0].startswith("crops by the native library " + str(switched_on))
    assert len(batches) == 3
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(one, two) for one, two in zip(batch, other, strict=True))


def test_without_a_compiler_torch_makes_the_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("DINO_NATIVE")
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert choose_cut() is cut_views
    expected = "no C++ compiler (looked for no-such-compiler); install one or set CXX"
    assert log.messages == [f"crops by torch: {expected}"]


def test_the_first_error_of_the_compiler_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho note >&2; echo "x: error: 1" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.delenv("DINO_NATIVE")
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    assert choose_cut() is cut_views
    assert log.messages == [f"crops by torch: {compiler} failed: x: error: 1"]
    assert [path.name for path in (tmp_path / "native").iterdir()] == ["lock"]


def test_a_library_that_differs_from_torch_is_not_used(
    switched_on: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "cut_views", lambda *rest: cut_views(*rest) + np.uint8(1))
    choose_cut()
    text = "crops by torch: the native crops differ from those of this torch"
    assert log.messages == [text]


def test_libraries_of_another_user_are_refused(
    built: NativeCrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(NativeError, match="another user's"):
        native.check_library(built.path)


def test_a_folder_of_others_leads_back_to_torch(
    switched_on: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path))
    (tmp_path / "native").symlink_to(switched_on)
    with pytest.raises(NativeError, match="is a link, another.*set DINO_CACHE_DIR to a folder of"):
        open_native()


@pytest.fixture
def copy(built: NativeCrops, tmp_path: Path) -> Path:
    path = tmp_path / "copy.so"
    path.write_bytes(built.path.read_bytes())
    path.chmod(0o700)
    native.check_library(path)
    return path


@pytest.mark.parametrize("size", [0, 1, 31, 32, 100, 9000])
def test_a_truncated_library_is_never_loaded(copy: Path, size: int) -> None:
    copy.write_bytes(copy.read_bytes()[:size])
    with pytest.raises(NativeError, match="is damaged"):
        NativeCrops(copy)


def test_a_library_with_a_flipped_bit_is_never_loaded(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(NativeError, match="is damaged"):
        NativeCrops(copy)


def test_a_library_that_others_can_write_is_never_loaded(copy: Path) -> None:
    copy.chmod(0o720)
    with pytest.raises(NativeError, match="writable by others"):
        NativeCrops(copy)


def test_a_damaged_library_is_built_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path))
    name = next((cache / "native").glob("*.so")).name
    damaged = native.make_folder(tmp_path / "native") / name
    damaged.write_bytes(b"\x7fELF")
    damaged.chmod(0o700)
    assert open_native().path == damaged
    assert log.messages == [f"{damaged} is damaged; building it again"]


def test_a_library_that_is_gone_when_a_loader_process_begins_is_replaced_by_torch(
    copy: Path, log: pytest.LogCaptureFixture
) -> None:
    stored = pickle.dumps(NativeCrops(copy))
    assert isinstance(pickle.loads(stored), NativeCrops)
    copy.unlink()
    assert pickle.loads(stored) is cut_views
    assert len(log.messages) == 1 and log.messages[0].startswith("crops by torch: ")


def _open(folder: str) -> str:
    os.environ["DINO_CACHE_DIR"] = folder
    return str(open_native().path)


def test_processes_that_build_at_once_share_one_library(cache: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.map(_open, [str(tmp_path)] * 2, chunksize=1)
    assert paths[0] == paths[1]
    names = {path.name for path in (tmp_path / "native").iterdir()}
    assert names == {"lock", Path(paths[0]).name}


def _set(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def test_a_training_run_says_which_way_it_crops_and_learns_the_same(
    cache: Path, tmp_path: Path
) -> None:
    images = make_images(tmp_path / "images", 9)
    losses = []
    for switch, way in (("1", f"native library {cache / 'native'}"), ("0", "torch: DINO_NATIVE=0")):
        words = ("--data_path", images, "--output_dir", tmp_path / switch)
        prepare = functools.partial(_set, {"DINO_NATIVE": switch, "DINO_CACHE_DIR": str(cache)})
        run = train(tmp_path / switch, *words, prepare=prepare)
        assert run.code == 0, run.text
        found = [line for line in run.text.splitlines() if "crops by" in line]
        assert len(found) == 1 and way in found[0]
        losses.append(losses_of(tmp_path / switch))
    assert losses[0] == losses[1] and len(losses[0]) == 2


def _run_command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dino.cli", "build-native", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "DINO_NATIVE": "1", **variables},
    )


def test_the_command_builds_and_says_where(cache: Path) -> None:
    done = _run_command(DINO_CACHE_DIR=str(cache))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{next((cache / 'native').glob('*.so'))} makes the same crops as torch\n"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler (looked for no-such-compiler)"),
        ({"DINO_NATIVE": "0"}, "DINO_NATIVE=0 switches the native crops off"),
    ],
)
def test_the_command_says_in_one_line_why_it_cannot(
    tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    done = _run_command(DINO_CACHE_DIR=str(tmp_path), **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr and len(done.stderr.splitlines()) == 1
