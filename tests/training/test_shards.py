"""Training from tar shards or tables ends where training from the folder ends, also when it is
killed inside an epoch."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from dino import checkpoint
from dino.data.packing import Packing, pack_images
from dino.data.sources import open_training_source
from tests.range_server import serve
from tests.running import Result, make_images, train, train_pair
from tests.tables import write_parquet

BEFORE_THE_END = 57  # images read of 80: forty an epoch, in batches of four
OFTEN = ("--save_every_steps", 1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images", 40)


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    list(pack_images(open_training_source(str(images)), folder, Packing(7), workers=1))
    return str(folder / "images-{000000..000005}.tar")


@pytest.fixture(scope="module")
def tables(images: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Parquet files with row groups of three images."""
    folder = tmp_path_factory.mktemp("tables") / "data"
    return str(write_parquet(folder, open_training_source(str(images))))


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the folder that nothing stops."""
    folder = tmp_path_factory.mktemp("run")
    words = ("--data_path", images, "--output_dir", folder / "whole", *OFTEN)
    assert train(folder, *words).code == 0
    return folder / "whole"


def student_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / checkpoint.LATEST, weights_only=True)["student"]


def assert_equal(one: Path, two: Path) -> None:
    left, right = student_of(one), student_of(two)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (one / "log.txt").read_text() == (two / "log.txt").read_text()


def die_inside_an_epoch() -> None:
    from dino.data import image_source

    plain, seen = image_source.read_image, []

    def read(*words: object, **named: object) -> torch.Tensor:
        seen.append(words)
        if len(seen) > BEFORE_THE_END:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*words, **named)

    image_source.read_image = read


@pytest.mark.parametrize("form", ["shards", "tables"])
def test_a_run_killed_inside_an_epoch_ends_as_one_on_the_folder(
    form: str, whole: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(form)
    words = ("--data_path", path, "--output_dir", tmp_path / "killed", *OFTEN)
    assert train(tmp_path, *words, prepare=die_inside_an_epoch).code == -signal.SIGKILL
    again = train(tmp_path, *words)
    assert again.code == 0, again.text
    assert_equal(whole, tmp_path / "killed")


def be_far(cache: Path, limit: str, dies: bool) -> None:
    """Use this cache, and lose no time on a server that stalls."""
    from dino.data import remote_requests

    remote_requests.PAUSE, remote_requests.PATIENCE = 0.0, 2.0
    os.environ.update(DINO_CACHE_DIR=str(cache), DINO_CACHE_LIMIT=limit)
    if dies:
        die_inside_an_epoch()


def damage(cache: Path) -> None:
    for path in cache.glob("images/*"):
        content = bytearray(path.read_bytes())
        content[700::100] = bytes(byte ^ 1 for byte in content[700::100])
        path.write_bytes(content)


def test_a_run_killed_on_shards_behind_a_url_ends_as_one_on_the_folder(
    whole: Path, shards: str, tmp_path: Path
) -> None:
    folder, pattern = Path(shards).parent, Path(shards).name
    with serve(folder) as server:

        def run(name: str, *words: object, limit: str = "1G", dies: bool = False) -> Result:
            server.faults[:] = [503, "cut", "shift", "stall", 500, "cut"]
            place = tmp_path / name
            return train(
                place,
                *("--data_path", f"{server.url}/{pattern}", "--output_dir", place / "run", *words),
                prepare=partial(be_far, place / "cache", limit, dies),
            )

        killed = run("full", *OFTEN, dies=True)
        assert killed.code == -signal.SIGKILL, killed.text
        for name in ("empty", "damaged"):
            shutil.copytree(tmp_path / "full", tmp_path / name)
        shutil.rmtree(tmp_path / "empty" / "cache" / "images")
        damage(tmp_path / "damaged" / "cache")
        kept = sorted((tmp_path / "full" / "cache" / "images").iterdir())
        for path in kept[3:]:
            path.unlink()
        for name, workers, limit in (
            ("full", 0, "0.01M"),  # less than it holds
            ("empty", 1, "1G"),
            ("damaged", 0, "1G"),
        ):
            again = run(name, "--num_workers", workers, limit=limit)
            assert again.code == 0, again.text
            assert server.faults == []
            assert_equal(whole, tmp_path / name / "run")
        assert sorted((tmp_path / "full" / "cache" / "images").iterdir()) == kept[:3]


def test_two_processes_share_shards_as_they_share_a_folder(
    images: Path, shards: str, tmp_path: Path
) -> None:
    for name, path in (("folder", images), ("shards", shards)):
        words = (
            "--data_path",
            path,
            "--output_dir",
            tmp_path / name,
            "--epochs",
            1,
            "--batch_size_per_device",
            2,
        )
        assert [result.code for result in train_pair(tmp_path / f"{name}-log", *words)] == [0, 0]
    assert_equal(tmp_path / "folder", tmp_path / "shards")


def test_a_missing_shard_ends_with_2_and_one_line(shards: str, tmp_path: Path) -> None:
    words = ("--data_path", shards.replace("000005", "000006"), "--output_dir", tmp_path / "run")
    result = train(tmp_path, *words)
    assert result.code == 2
    assert (
        "1 of 7 shards are missing, the first is" in result.text and "Traceback" not in result.text
    )
