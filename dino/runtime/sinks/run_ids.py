"""run_ids.json: which run of a service an output folder's run is, so that it goes on there."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

from dino.files import atomic_write
from dino.runtime.sinks.base import Start

logger = logging.getLogger(__name__)

FILE = "run_ids.json"  # service -> id, and the folder that the id was kept in
WRITING = threading.Lock()  # services begin in threads of their own


def find_id(start: Start, service: str) -> str | None:
    """The run to continue; None to begin one. Says why if the folder's run continues."""
    if not start.iteration:
        return None
    held = _read(start.folder, service)
    if not held:
        why = f"{start.folder / FILE} names no run"
    elif _is_copy(start.folder, service, held):
        why = f"{start.folder} is a copy of {held['folder']}, whose run it is"
    else:
        return held["id"]
    logger.info("%s: a new run begins at iteration %d: %s", service, start.iteration, why)
    return None


def keep_id(folder: Path, service: str, run: str) -> None:
    """Keep the id of a service's run; warns if it cannot be written."""
    held = {"id": run, "folder": str(folder.resolve())}
    try:
        with WRITING, atomic_write(folder / FILE) as temporary:
            temporary.write_text(json.dumps({**_read_all(folder), service: held}) + "\n")
    except OSError as error:
        why = "%s cannot be written to: %s; %s will have a new run when this one resumes"
        logger.warning(why, folder / FILE, error.strerror, service)


def _read(folder: Path, service: str) -> dict[str, str]:
    """What a folder holds of a service; nothing if the file is missing or damaged."""
    held = _read_all(folder).get(service)
    kept = held if isinstance(held, dict) else {}
    return kept if all(isinstance(kept.get(key), str) for key in ("id", "folder")) else {}


def _read_all(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _is_copy(folder: Path, service: str, held: dict[str, str]) -> bool:
    """Whether the folder that the id was kept in still has it, and is another one."""
    other = Path(held["folder"])
    return _read(other, service) == held and not folder.samefile(other)
