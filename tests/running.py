"""Tiny runs of commands, in a fork server that has the imports behind it: a run costs its work and
not its start."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from dino import checkpoint
from dino.cli.session import exit_code
from dino.runtime.signals import STOP_SIGNALS

FAKES = (
    Path(__file__).resolve().parent / "fakes"
)  # stand-ins for packages that cannot be installed here

HALF_ON_CPU = tuple(int(part) for part in importlib.metadata.version("torch").split(".")[:2]) >= (
    2,
    2,
)

SERVER = multiprocessing.get_context("forkserver")
PRELOAD = (
    "api.training",
    "devices.cpu",
    "training.trainer",
    "training.dry_run",
    "evaluation.knn",
    "evaluation.linear.probe",
    "evaluation.export.feature_file",
)
COMPILER = "torch._dynamo.backends.common"  # which the simulated bridge imports
DECODERS = [f"PIL.{name}" for name in PIL._plugins]  # the first image of a run imports them
SERVER.set_forkserver_preload(
    [
        *("main_dino", *DECODERS, *(f"dino.{name}" for name in PRELOAD)),
        *("tensorboard.summary.writer.record_writer", "torch.utils.serialization.config"),
        COMPILER,
    ]
)

TINY = (
    *(
        "--arch",
        "vit_mini",
        "--patch_size",
        "8",
        "--global_crops_size",
        "16",
        "--local_crops_size",
        "8",
    ),
    *(
        "--local_crops_number",
        "1",
        "--out_dim",
        "16",
        "--batch_size_per_device",
        "4",
        "--num_workers",
        "0",
    ),
    *("--device", "cpu", "--saveckp_freq", "0", "--epochs", "2"),
    *("--own_view_images", "0", "--draw_pictures", "false"),
)


def make_images(folder: Path, count: int, *, size: int = 20, seed: int = 0) -> Path:
    """Write `count` PNGs of colored noise into a flat folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(
            folder / f"{index:03}.png"
        )
    return folder


def make_labelled(root: Path, per_class: dict[str, int]) -> Path:
    """Write train/ and val/ with two class folders of noise; `per_class` gives the images of each
    split."""
    for split, count in per_class.items():
        for number, name in enumerate(("ant", "bee")):
            make_images(root / split / name, count, seed=number)
    return root


@dataclass
class Result:
    """How a run ended: exit code (negative: the signal that killed it) and what it printed."""

    code: int
    text: str


class Job:
    """One run of a script's main in a process of its own."""

    def __init__(
        self,
        folder: Path,
        words: list[str],
        prepare: Callable[[], None] | None = None,
        script: str = "main_dino",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / f"job{len(list(folder.glob('job*.txt')))}.txt"
        self.process = SERVER.Process(target=_run, args=(script, words, str(self.output), prepare))
        self.process.start()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, if the run is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, number)

    def wait(self, seconds: float = 600) -> Result:
        """Wait for the end; a run that hangs is killed and fails the test. A busy machine takes
        five times its time."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the run did not end in {seconds} s: {self.text()}")
        return Result(self.process.exitcode, self.text())

    def text(self) -> str:
        """What it printed so far."""
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""


def train(folder: Path, *words: object, prepare: Callable[[], None] | None = None) -> Result:
    """Run a tiny training to its end; words win over TINY's."""
    return Job(folder, [*TINY, *choose_eager(words)], prepare).wait()


def choose_eager(words: Sequence[object]) -> list[str]:
    """Words for a run on a simulated card: eager where they say no mode, since compiling takes far
    longer than a run.

    Torch is upstream's here, where a run that says nothing is compiled.
    """
    said = [*map(str, words)]
    card = any(pair == ("--device", "hpu") for pair in zip(said, said[1:], strict=False))
    return said + ["--lazy_mode", "false"] * (card and not {"--lazy_mode", "--compile"} & {*said})


def train_pair(
    folder: Path,
    *words: object,
    prepare: tuple[Callable[[], None] | None, Callable[[], None] | None] = (None, None),
) -> list[Result]:
    """The same with two processes, as a launcher starts them; `prepare` has what each of them does
    first."""
    return run_pair(folder, "main_dino", *TINY, *choose_eager(words), prepare=prepare)


def run_pair(
    folder: Path,
    script: str,
    *words: object,
    prepare: tuple[Callable[[], None] | None, Callable[[], None] | None] = (None, None),
) -> list[Result]:
    """Run any script with two processes."""
    port = find_port()
    jobs = [
        Job(
            folder / f"rank{rank}",
            [*map(str, words)],
            functools.partial(be_rank, rank, port, prepare[rank]),
            script,
        )
        for rank in range(2)
    ]
    return [job.wait() for job in jobs]


def find_port() -> int:
    """A port for a job's first process, below those that the system gives to outgoing connections
    in the meantime."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def state_of(folder: Path) -> dict:
    """A run's last checkpoint."""
    return checkpoint.load_file(folder / checkpoint.LATEST)


def lines_of(folder: Path) -> list[dict]:
    """A run's log, an epoch a line."""
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def losses_of(folder: Path) -> list[float]:
    """A run's losses, epoch by epoch."""
    return [line["train_loss"] for line in lines_of(folder)]


def run_alone(
    folder: Path, script: str, *words: object, prepare: Callable[[], None] | None = None
) -> Result:
    """Run a script to its end."""
    return Job(folder, [*map(str, words)], prepare, script).wait()


def be_rank(
    rank: int, port: int, prepare: Callable[[], None] | None = None, world_size: int = 2
) -> None:
    """Give this process a place among others on one host, as a launcher does."""
    place = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    if prepare is not None:
        prepare()


def _run(script: str, words: list[str], output: str, prepare: Callable[[], None] | None) -> None:
    import torch

    from dino.training import build

    torch.set_num_threads(1)
    # A command's own loader processes start as they do in a terminal, not in a fork server that
    # would import all again.
    multiprocessing.set_start_method(None, force=True)
    gc.freeze()  # what the server imported is not looked through again
    # The original's head has 5 million weights however small the backbone is; these runs are about
    # everything else.
    build.DINOHead = functools.partial(build.DINOHead, hidden_dim=64)
    with open(output, "w", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = io.TextIOWrapper(
            os.fdopen(1, "wb", buffering=0), write_through=True
        )
        hear_signals()
        if prepare is not None:
            prepare()
        code = exit_code(lambda: importlib.import_module(script).main(words))
    sys.exit(code)


def hear_signals() -> None:
    """Handle signals as in a terminal's foreground; background jobs of a shell ignore Ctrl-C."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def on_fake_ipu() -> None:
    """Let this process find the stand-in for PopTorch; for `prepare`."""
    sys.path.insert(0, str(FAKES))


def on_simulated_card() -> None:
    """Let this process find the simulated bridge; for `prepare`, before anything asks torch for its
    accelerators."""
    from tests import hpu_simulator

    hpu_simulator.load_extension()
    sys.path.insert(0, str(hpu_simulator.PACKAGE))
