"""Takes what names a host, a user or a folder out of texts that leave the machine."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

USER, HOST, PATH, ADDRESS = "<user>", "<host>", "<path>", "<address>"
PACKAGES = ("dino", "torch", "torchvision", "habana_frameworks", "timm", "numpy")  # whose files may be named
USER_VARIABLES = ("USER", "LOGNAME", "USERNAME", "SUDO_USER", "SLURM_JOB_USER")
HOST_VARIABLES = ("HOSTNAME", "HOST", "MASTER_ADDR", "SLURM_SUBMIT_HOST", "SLURMD_NODENAME", "NODE_NAME")
PLAIN = {"localhost", "127.0.0.1", "none", "unknown"}  # names that say nothing

ROOTED = re.compile(r"(?<![\w./<>~-])(?:file://)?~?(?:/[^\s/:;,'\"()\[\]{}|<>]+)+/?")
HOME = re.compile(r"~[\w.-]*")
SERVICE = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}:\d+\b|\b[\w.+-]+@[\w.-]+\b")  # address:port, user@host
LIBRARY = re.compile(rf"(?:^|/)((?:{'|'.join(PACKAGES)})/(?:[\w.-]+/)*[\w-]+\.(?:py|cpp|h|so))$")

NUMBERS = re.compile(r"[-+.,:;0-9]*")
WORDS = {"true", "false", "all", "none", "yes", "no", "on", "off", "info", "warning", "error", "debug", "critical"}


def scrub(text: str, *, users: Iterable[str], hosts: Iterable[str], folders: Iterable[str]) -> str:
    """A text without the given names and without any path, but for the files of the libraries involved.

    Args:
        text: Any.
        users: Account names; taken out where they stand as words of their own.
        hosts: Host names, long or short; the same.
        folders: Known to be on this machine; taken out with what follows them, even with blanks in their names.
    """
    for folder in sorted({part for part in folders if len(part) > 1}, key=len, reverse=True):
        text = re.sub(rf"{re.escape(folder.rstrip('/'))}(?![\w-])[^\s:;,'\"()\[\]{{}}|<>]*", _name_path, text)
    text = SERVICE.sub(ADDRESS, text)
    text = ROOTED.sub(_name_path, text)
    text = HOME.sub(PATH, text) if "~" in text else text
    for names, word in ((hosts, HOST), (users, USER)):
        for name in sorted(set(names), key=len, reverse=True):
            if name and name.lower() not in PLAIN:
                text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", word, text, flags=re.IGNORECASE)
    return text


def _name_path(found: re.Match[str]) -> str:
    library = LIBRARY.search(found[0])
    return library[1] if library else PATH


def build_scrubber(environment: Mapping[str, str] = os.environ) -> Callable[[Any], Any]:
    """What takes this machine's names out of a text, or out of every text in nested dictionaries and lists."""
    users = {environment[name] for name in USER_VARIABLES if name in environment} | {_find_user(), Path.home().name}
    host = socket.gethostname()
    hosts = {environment[name] for name in HOST_VARIABLES if name in environment} | {host, socket.getfqdn()}
    hosts |= {name.partition(".")[0] for name in hosts if not name[:1].isdecimal()}
    folders = {str(Path.home()), os.getcwd(), tempfile.gettempdir(), sys.prefix, *filter(None, sys.path)}
    for value in environment.values():
        folders |= {part for part in (value, *value.split(":")) if part.startswith(("/", "~"))}

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return scrub(value, users=users, hosts=hosts, folders=folders)
        if isinstance(value, Mapping):
            return {clean(name): clean(part) for name, part in value.items()}
        return [clean(part) for part in value] if isinstance(value, list | tuple) else value

    return clean


def show_value(value: str) -> str:
    """The value of a variable where it is a number, a list of them or a plain word; else only that it is set."""
    parts = re.split(r"[,:;]", value)
    if all(NUMBERS.fullmatch(part) or part.strip().lower() in WORDS for part in parts):
        return value
    return f"<{len(value)} characters>"


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return ""
