"""One process's failure ends all of them: soon, with its reason and with its exit code."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from dino import checkpoint
from dino.errors import CheckpointError, DataError, Interrupted, NonFiniteError, PeerFailed
from dino.runtime import failures
from dino.runtime.failures import KEY, FailureWatch
from tests.running import make_images, train_pair


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen noise images in a flat folder."""
    return make_images(tmp_path_factory.mktemp("images"), 16)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FailureWatch]:
    """Watches of processes that share one store; none of them looks by itself."""
    monkeypatch.setattr(failures, "LOOK_EVERY", 1000.0)
    monkeypatch.setattr(failures, "LINGER", 0.0)
    store = dist.HashStore()

    def build(rank: int, world_size: int = 2) -> FailureWatch:
        return FailureWatch(
            SimpleNamespace(
                rank=rank, world_size=world_size, store=store if world_size > 1 else None
            )
        )

    return build


def test_the_first_failure_is_the_one_that_all_report(watch: Callable[..., FailureWatch]) -> None:
    first, second = watch(0), watch(1)
    second.announce(DataError("no\n picture"))
    assert second.store.get(KEY) == b"2 1 DataError: no picture"
    with pytest.raises(
        PeerFailed, match="ended because rank 1 did: DataError: no picture"
    ) as caught:
        first.announce(RuntimeError("Connection closed by peer"))
    assert caught.value.exit_code == 2


def test_an_error_of_ones_own_is_reported_even_when_another_process_failed_first(
    watch: Callable[..., FailureWatch],
) -> None:
    watch(1).announce(KeyError("x"))
    watch(0).announce(CheckpointError("disk full"))
    assert watch(0).store.get(KEY) == b"1 1 KeyError: 'x'"


@pytest.mark.parametrize("error", [Interrupted("saved"), NonFiniteError("nan")])
def test_what_all_decide_alike_is_no_failure(
    watch: Callable[..., FailureWatch], error: Exception
) -> None:
    watch(0).announce(error)
    assert not watch(0).store.check([KEY])


def test_a_process_alone_has_nobody_to_tell(watch: Callable[..., FailureWatch]) -> None:
    watch(0, world_size=1).announce(DataError("no picture"))


def break_images_of_one_rank() -> None:
    """Every image this process reads is broken."""
    from dino.data import image_source

    def refuse(path: Path, channels: int, box: object = None) -> None:
        raise DataError(f"{path} cannot be decoded")

    image_source.read_image = refuse


def break_saving() -> None:
    """The disk is full."""

    def refuse(*_: object) -> None:
        raise CheckpointError("no space left")

    checkpoint.save_latest = refuse


@pytest.mark.parametrize(
    ("failing", "prepare", "reason"),
    [
        (1, break_images_of_one_rank, "DataError: "),
        (0, break_saving, "CheckpointError: no space left"),
    ],
)
def test_a_failure_of_one_process_ends_both_soon_with_its_code(
    images: Path, tmp_path: Path, failing: int, prepare: Callable[[], None], reason: str
) -> None:
    began = time.monotonic()
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    results = train_pair(
        tmp_path, *words, prepare=(prepare, None) if failing == 0 else (None, prepare)
    )
    assert time.monotonic() - began < 60, "a collective would wait for half an hour"
    assert [result.code for result in results] == [2, 2], [result.text for result in results]
    other = results[1 - failing].text
    assert f"[rank {failing}] {reason}" in results[failing].text
    assert (
        f"[rank {1 - failing}] PeerFailed: ended because rank {failing} did: {reason}" in other
    ), other
    assert "Traceback" not in other


def hide_the_checkpoint() -> None:
    """This process's output folder is on another disk."""
    checkpoint.load_latest = lambda *_, **__: None


def test_a_folder_that_the_hosts_do_not_share_is_refused(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    assert [result.code for result in train_pair(tmp_path, *words, "--epochs", 1)] == [0, 0]
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    results = train_pair(tmp_path, *words, prepare=(None, hide_the_checkpoint))
    assert [result.code for result in results] == [2, 2], [result.text for result in results]
    assert (
        "holds iteration 0 here and 2 on rank 0's host; --output_dir must be a folder that all"
        in results[1].text
    )
