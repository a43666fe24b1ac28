"""Processes that would not work on the same thing do not begin."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from dino.errors import OptionError
from dino.runtime.agreement import PLACE, check_command, check_images, check_same
from dino.runtime.distributed import Processes
from dino.runtime.members import Member


def build_processes(rank: int, store: dist.Store) -> Any:
    """The part of `Processes` that goes through the store."""
    processes = object.__new__(Processes)
    processes.rank, processes.world_size, processes.reads = rank, 2, 0
    processes.waits, processes.meeting = None, SimpleNamespace(store=store)
    return processes


@pytest.fixture
def pair() -> list[Any]:
    """Two processes of one store."""
    store = dist.HashStore()
    for rank in range(2):
        store.set(f"member_{rank}", str(Member(host=f"h{rank}", pid=rank, start="1", kernel="-")))
    return [build_processes(rank, store) for rank in range(2)]


def images(count: int, digest: str) -> Any:
    """A source of images."""

    class Source:
        def __len__(self) -> int:
            return count

        def fingerprint(self) -> str:
            return digest

    return Source()


def test_different_images_are_one_line_that_names_both(pair: list[Any]) -> None:
    check_images(pair[0], images(16, "aa"))
    with pytest.raises(OptionError) as caught:
        check_images(pair[1], images(16, "bb"))
    assert str(caught.value) == (
        "rank 1 (process 1 on h1) and rank 0 (process 0 on h0) differ: images 16 (bb) and 16 (aa); "
        "start all processes with the same images, options and software"
    )


def test_equal_images_and_commands_pass_in_any_number(pair: list[Any]) -> None:
    for processes in pair:
        for digest in ("aa", "bb"):
            check_images(processes, images(3, digest))
        check_command(processes, {"lr": 0.1, "scale": (0.4, 1.0), "preset": None})


@pytest.mark.parametrize(
    ("first", "here", "expected"),
    [
        ({"lr": 0.1, "arch": "x"}, {"lr": 0.2, "arch": "x"}, "differ: `lr` 0.2 and 0.1;"),
        ({"lr": 0.1}, {"lr": 0.2, "new": 1}, "differ: `lr` 0.2 and 0.1, `new` 1 and None;"),
    ],
)
def test_different_settings_are_named_with_both_values(
    pair: list[Any], first: dict, here: dict, expected: str
) -> None:
    check_command(pair[0], first)
    with pytest.raises(OptionError, match=expected):
        check_command(pair[1], here)


def test_what_belongs_to_a_host_may_differ(pair: list[Any]) -> None:
    for rank, processes in enumerate(pair):
        check_command(processes, {name: f"{name} of {rank}" for name in PLACE})


@pytest.mark.parametrize("name", ["dino", "torch"])
def test_different_software_is_named(
    pair: list[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    check_command(pair[0], {})
    digest, version = "dino.runtime.agreement._digest_code", "torch.__version__"
    monkeypatch.setattr(*((digest, lambda: "other") if name == "dino" else (version, "other")))
    with pytest.raises(OptionError, match=rf"differ: {name} \S*( \(other\)|other) and "):
        check_command(pair[1], {})


def test_a_process_alone_agrees_with_itself() -> None:
    alone = object.__new__(Processes)
    alone.rank, alone.world_size, alone.meeting = 0, 1, None
    check_same(alone, {"x": 1})
    check_images(alone, images(3, "aa"))
    check_command(alone, {"x": 1})
