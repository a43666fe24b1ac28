"""Takes this machine's names out of all that the report says, and shows variables only where they name nobody."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dino.doctor.scrub import build_scrubber

NUMBERS = re.compile(r"[-+.,0-9]*")
WORDS = {
    "true",
    "false",
    "all",
    "none",
    "yes",
    "no",
    "on",
    "off",
    "info",
    "warning",
    "error",
    "debug",
    "critical",
}


def build_cleaner(environment: Mapping[str, str] = os.environ) -> Callable[[Any], Any]:
    """What scrubs a text, or every text in nested dictionaries and lists, the keys included."""
    folders = {
        str(Path.home()),
        os.getcwd(),
        tempfile.gettempdir(),
        sys.prefix,
        sys.base_prefix,
        *sys.path,
    }
    scrub = build_scrubber(
        environment,
        host=socket.gethostname(),
        paths=folders,
        users={_find_user(), Path.home().name},
    )

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return scrub(value)
        if isinstance(value, Mapping):
            return {clean(name): clean(part) for name, part in value.items()}
        return [clean(part) for part in value] if isinstance(value, list | tuple) else value

    return clean


def show_value(value: str) -> str:
    """The value of a variable where it is made of numbers and plain words; else only how long it is."""
    parts = re.split(r"[,:;]", value)
    if all(NUMBERS.fullmatch(part) or part.strip().lower() in WORDS for part in parts):
        return value
    return f"<{len(value)} characters>"


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return ""
