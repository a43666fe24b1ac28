"""Removes private data from a report: paths, and the names of host and user."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

HOSTS = (
    *("MASTER_ADDR", "HOSTNAME", "HOST", "NODE_NAME"),
    *(
        "SLURMD_NODENAME",
        "SLURM_JOB_NODELIST",
        "SLURM_NODELIST",
        "SLURM_SUBMIT_HOST",
        "SLURM_LAUNCH_NODE_IPADDR",
    ),
)
USERS = ("USER", "LOGNAME", "USERNAME", "SUDO_USER", "SLURM_JOB_USER")
NAMELESS = {"root", "localhost", "127.0.0.1", "none", "unknown"}  # they identify nobody
LIBRARIES = (
    "dino",
    "torch",
    "torchvision",
    "habana_frameworks",
    "timm",
    "numpy",
)  # paths inside these libraries may be shown

END = r"\s:,;'\"()\[\]{}|<>"  # what ends a path in a sentence
PATH = re.compile(rf"(?<![\w.~>/-])(?:~[\w.-]*)?(?:/+[^/{END}]+)+/?|(?<![\w/])~[A-Za-z_][\w.-]*")
# An address with its port, or user@host.
ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}:\d+\b|\b[\w.+-]+@[\w.-]+\w")
LIBRARY = re.compile(rf"/((?:{'|'.join(LIBRARIES)})/(?:[\w-]+/)*[\w-]+\.(?:py|cpp|h|so))\.?$")


def build_scrubber(
    environment: Mapping[str, str],
    *,
    host: str,
    paths: Collection[str] = (),
    users: Collection[str] = (),
) -> Callable[[str], str]:
    """Return a function that replaces paths and names in a text by <path>, <host> and <user>.

    Names match as whole words, in any case. Paths of library files in a traceback keep the part
    inside the library.

    Args:
        environment: Its values are known paths (also with spaces) and names.
        host: Name of this machine.
        paths: Other paths that may occur, such as the interpreter's.
        users: Other account names.
    """
    folders_known = {path for path in paths if len(path) > 1}
    for value in environment.values():
        folders_known |= {
            part for part in (value, *value.split(":")) if part.startswith(("/", "~/")) and part[1:]
        }
    hosts = {host, *(environment.get(name, "") for name in HOSTS)}
    # A name also without its domain; an IP address only as a whole.
    hosts |= {name.partition(".")[0] for name in hosts if not name[:1].isdecimal()}
    names = dict.fromkeys(hosts, "<host>")
    names |= dict.fromkeys({*users, *(environment.get(name, "") for name in USERS)}, "<user>")
    names = {
        name.lower(): word for name, word in names.items() if name and name.lower() not in NAMELESS
    }
    folders = _compile(
        {path.rstrip("/") for path in folders_known}, r"(?<!\w)", rf"(?![\w-])[^{END}]*"
    )
    words = _compile(names, r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])")

    def scrub(text: str) -> str:
        text = folders.sub(_name_path, text) if folders else text
        text = PATH.sub(_name_path, ADDRESS.sub("<host>", text))
        return words.sub(lambda found: names[found[0].lower()], text) if words else text

    return scrub


def _compile(literals: Collection[str], before: str, after: str) -> re.Pattern[str] | None:
    """Compile a pattern for any of the literals, longest first; None if there are no literals."""
    longest_first = sorted({text for text in literals if text}, key=len, reverse=True)
    any_of = "|".join(map(re.escape, longest_first))
    return re.compile(f"{before}(?:{any_of}){after}", re.IGNORECASE) if longest_first else None


def _name_path(found: re.Match[str]) -> str:
    library = LIBRARY.search(found[0])
    return library[1] if library else "<path>"
