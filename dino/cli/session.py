"""The start and end of every command: logging, the run it works in, and its exit code."""

from __future__ import annotations

import contextlib
import errno
import gc
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
from dino.runtime.launch import read_launch, tell_launcher
from dino.runtime.output import Console, losing_output
from dino.runtime.signals import leaving_on

if TYPE_CHECKING:
    from dino.runtime.context import Run

INSTALL = "pip install torch torchvision timm, or start from a container that has them"
LIBRARIES = dict.fromkeys(("torch", "torchvision", "timm"), INSTALL)
SETTING = re.compile(r"`([a-z][a-z0-9_]*)`")  # how the library names a setting
# Between two looks for garbage; Python's 700 cost a seventh of a start, which makes 300,000 objects
# that stay. A training step leaves no garbage.
NEW_OBJECTS = 7_000
DEBUG = "DINO_DEBUG"  # environment variable; also logs the tracebacks of loader processes


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
    rank = read_launch(os.environ).rank
    handler = Console(sys.stdout)
    handler.setFormatter(_Spelling("%(message)s" if rank == 0 else f"[rank {rank}] %(message)s"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING, handlers=[handler], force=True
    )
    if os.environ.get(DEBUG):
        logging.getLogger("dino").setLevel(logging.DEBUG)
    return rank


@contextlib.contextmanager
def open_session(config: Any, **more: Any) -> Iterator[Run]:
    """Set up logging and open the run of `config`; `more` is passed to `open_run`.

    Raises:
        DinoError: The device or the rendezvous is not usable.
    """
    from dino.config import as_dict
    from dino.runtime.context import open_run

    set_up_logging()
    settings = as_dict(config)
    with open_run(config.device, config.launch, settings=settings, phrase=spell, **more) as run:
        yield run


def exit_code(command: Callable[[], None]) -> int:
    """Run `command` and turn the project's errors into one line on stderr and an exit code.

    A closed terminal (SIGHUP) ends it with 129, unless a training run saves first.

    Args:
        command: The body of a script, without arguments.

    Returns:
        0 if it returned, the error's `exit_code`, or 130 for Ctrl-C, as in shells. Other exceptions
        are bugs and pass through with a traceback.
    """
    gc.set_threshold(NEW_OBJECTS)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold bytes that are not text.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with leaving_on(signal.SIGHUP):
            command()
    except KeyboardInterrupt as error:
        return _fail(f"stopped by Ctrl-C{f'; {error}' if error.args else ''}", 128 + signal.SIGINT)
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        return _fail(f"{error.name} is not installed; {LIBRARIES[error.name]}", DinoError.exit_code)
    except DinoError as error:
        text = f"{type(error).__name__}: {' '.join(spell(str(error)).split())}"
        return _fail(f"{_name_rank()}{text}", error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _fail(f"the path {str(error.filename)[:80]}... is too long", DinoError.exit_code)
    finally:
        with losing_output(sys.stdout):
            sys.stdout.flush()
    return 0


def _name_rank() -> str:
    """Return a prefix that names this process among several."""
    with contextlib.suppress(DinoError):
        launch = read_launch(os.environ)
        return f"[rank {launch.rank}] " if launch.world_size > 1 else ""
    return ""


def _fail(line: str, code: int) -> int:
    """Print the line and pass it to the launcher; return the code."""
    tell_launcher(line)
    with losing_output(sys.stderr):
        sys.stderr.write(f"{line}\n")
    return code
