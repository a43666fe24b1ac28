"""The start and end of every command: logging, the run it works in, and its exit code."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dino.cli.flags import FLAGS
from dino.errors import DinoError

if TYPE_CHECKING:
    from dino.runtime.context import Run

INSTALL = "pip install torch torchvision timm, or start from a container that has them"
LIBRARIES = dict.fromkeys(("torch", "torchvision", "timm"), INSTALL)
SETTING = re.compile(r"`([a-z][a-z0-9_]*)`")  # how the library names a setting


def spell(text: str) -> str:
    """Write setting names in a text as flags: "`lr` must be >= 0" becomes "--lr must be >= 0"."""

    def write(found: re.Match[str]) -> str:
        spec = FLAGS.get(found[1])
        return found[0] if spec is None else spec.spelling or f"--{found[1]}"

    return SETTING.sub(write, text)


class _Spelling(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return spell(super().format(record))


def set_up_logging() -> int:
    """Log plain lines from rank 0, and warnings with the rank from other ranks; return the rank."""
    from dino.runtime.launch import read_launch

    rank = read_launch(os.environ).rank
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Spelling("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, handlers=[handler], force=True
    )
    return rank


@contextlib.contextmanager
def open_session(config: Any, **more: Any) -> Iterator[Run]:
    """Set up logging and open the run of `config`; `more` is passed to `open_run`.

    Raises:
        DinoError: The device or the rendezvous is not usable.
    """
    from dino.runtime.context import open_run

    set_up_logging()
    with open_run(config.device, config.launch, phrase=spell, **more) as run:
        yield run


def exit_code(command: Callable[[], None]) -> int:
    """Run `command` and turn the project's errors into one line on stderr and an exit code.

    Args:
        command: The body of a script, without arguments.

    Returns:
        0 if it returned, the error's `exit_code`, or 130 for Ctrl-C, as in shells. Other exceptions
        are bugs and pass through with a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold bytes that are not text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command()
    except KeyboardInterrupt:
        sys.stderr.write(
            "stopped by Ctrl-C; the same command continues a training run from its last "
            "checkpoint\n"
        )
        return 128 + signal.SIGINT
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        sys.stderr.write(f"{error.name} is not installed; {LIBRARIES[error.name]}\n")
        return DinoError.exit_code
    except DinoError as error:
        rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
        sys.stderr.write(f"{rank}{type(error).__name__}: {' '.join(spell(str(error)).split())}\n")
        return error.exit_code
    return 0
