"""All processes of a run work on the same thing: checked before they begin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from dino import __version__
from dino.errors import OptionError
from dino.runtime.distributed import Processes
from dino.runtime.meeting import read_member

# Settings of a host or a process, which may differ.
PLACE = (
    *("dist_url", "local_rank", "hang_timeout", "data_path", "output_dir", "num_workers"),
    *("executable_cache_dir", "json"),
)


class Images(Protocol):
    """What a source of images says about itself."""

    def __len__(self) -> int:
        """Return the number of images."""

    def fingerprint(self) -> str:
        """Return a digest of the images' names."""


def check_command(processes: Processes, settings: Mapping[str, Any]) -> None:
    """Check that all processes run the same software with the same settings.

    Raises:
        OptionError: This process and rank 0 differ; the message names both values.
    """
    if processes.world_size > 1:
        options = {f"`{name}`": value for name, value in settings.items() if name not in PLACE}
        software = {"dino": f"{__version__} ({_digest_code()})", "torch": torch.__version__}
        check_same(processes, {**software, **options})


def check_images(processes: Processes, images: Images, name: str = "images") -> None:
    """Check that all processes read the same images.

    Raises:
        OptionError: This process and rank 0 differ; the message names both.
    """
    if processes.world_size > 1:
        check_same(processes, {name: f"{len(images)} ({images.fingerprint()})"})


def check_same(processes: Processes, facts: Mapping[str, Any]) -> None:
    """Check that this process has rank 0's facts; all processes call this.

    Raises:
        OptionError: Some differ; the message names both values of each.
    """
    here = json.loads(json.dumps(facts, default=str))  # as the others see them: lists, no tuples
    first = json.loads(processes.read_from_first("facts", json.dumps(here)))
    different = [name for name in {**first, **here} if here.get(name) != first.get(name)]
    if different:
        assert processes.store is not None
        both = [f"{name} {here.get(name)} and {first.get(name)}" for name in different]
        me, other = (read_member(processes.store, rank).place for rank in (processes.rank, 0))
        raise OptionError(
            f"rank {processes.rank} ({me}) and rank 0 ({other}) differ: {', '.join(both)}",
            remedy="start all processes with the same images, options and software",
        )


def _digest_code() -> str:
    """Digest this package's files, because copies of one version may differ."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
