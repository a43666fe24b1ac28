"""Takes out of a report what must not leave the machine: paths, and the names of host and user."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

HOSTS = ("MASTER_ADDR", "HOSTNAME", "HOST", "SLURMD_NODENAME", "SLURM_JOB_NODELIST", "SLURM_SUBMIT_HOST")
USERS = ("USER", "LOGNAME", "USERNAME", "SLURM_JOB_USER")
SHORTEST = 3  # a shorter name would be found within words

PATH = re.compile(r"(?<![\w.~>])~?/[^\s:,;'\"()\[\]{}|]*[^\s:,;'\"()\[\]{}|.]")


def build_scrubber(environment: Mapping[str, str], *, host: str, paths: tuple[str, ...] = ()) -> Callable[[str], str]:
    """A function that writes <path>, <host> and <user> for what it finds of them in a text.

    Args:
        environment: Its values are known paths, also such with spaces, and names.
        host: Name of this machine.
        paths: Others that may show, as the interpreter's.
    """
    known = {part: "<path>" for part in paths if len(part) > 1}
    for value in environment.values():
        known |= {part: "<path>" for part in (value, *value.split(":")) if part.startswith(("/", "~/")) and part[1:]}
    names = [host, host.partition(".")[0], *(environment.get(name, "") for name in HOSTS)]
    known |= {name: "<host>" for name in names if len(name) >= SHORTEST}
    users = [environment.get(name, "") for name in USERS]
    known |= {name: "<user>" for name in users if len(name) >= SHORTEST and name != "root"}
    longest_first = sorted(known, key=len, reverse=True)
    literal = re.compile("|".join(map(re.escape, longest_first))) if known else None

    def scrub(text: str) -> str:
        text = literal.sub(lambda found: known[found[0]], text) if literal else text
        text = re.sub(r"<path>[^\s:,;'\"()\[\]{}|]*", "<path>", text)  # what follows a known folder belongs to it
        return PATH.sub("<path>", text)

    return scrub
