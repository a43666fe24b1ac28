"""Find the cards of a shared Slurm node that belong to this job. Needs no torch.

On such a node Slurm does not keep a job away from the cards of others. Its only hint is
SLURM_JOB_GPUS, the indices of the cards. The bridge needs module numbers, and their order differs
from node to node. If HABANA_VISIBLE_MODULES or HLS_MODULE_ID is set, it decides, and hl-smi is not
run.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Callable, Mapping

from dino.errors import DeviceError

logger = logging.getLogger(__name__)

MODULES = "HABANA_VISIBLE_MODULES"
MODULE = "HLS_MODULE_ID"
JOB_CARDS = "SLURM_JOB_GPUS"
QUERY = ("hl-smi", "-Q", "index,module_id", "-f", "csv")
QUERY_SECONDS = 30.0  # time limit; it normally answers within one


def read_module_map(text: str) -> dict[int, int]:
    """Parse the output of `hl-smi -Q index,module_id -f csv` into card index -> module."""
    rows = re.findall(r"^\s*(\d+)\s*,\s*(\d+)\s*$", text, flags=re.MULTILINE)
    return {int(index): int(module) for index, module in rows}


def choose_modules(job_gpus: str, module_map: Mapping[int, int]) -> str:
    """Return HABANA_VISIBLE_MODULES for the cards of a job; local rank r uses the r-th.

    Args:
        job_gpus: SLURM_JOB_GPUS: indices and ranges, such as "0,2" or "0-3".
        module_map: Card index -> module on this node.

    Raises:
        DeviceError: `job_gpus` is not a list of cards, the module of a card is unknown, or two
            cards have the same module.
    """
    remedy = f"set {MODULES} to the modules of this job's cards"
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", job_gpus.strip()) is None:
        raise DeviceError(
            f"{JOB_CARDS} must be a list of cards such as 0,2 or 0-3 (got {job_gpus!r})",
            remedy=remedy,
        )
    ends = [[int(end) for end in part.split("-")] for part in job_gpus.strip().split(",")]
    cards = [card for first, *last in ends for card in range(first, (last or [first])[0] + 1)]
    pairs = (f"{index} -> {module}" for index, module in sorted(module_map.items()))
    shown = ", ".join(pairs) or "none"
    missing = [card for card in cards if card not in module_map]
    if missing:
        words = " ".join(QUERY)
        raise DeviceError(
            f"{JOB_CARDS}={job_gpus}: `{words}` lists no module for card {missing[0]} ({shown})",
            remedy=remedy,
        )
    modules = [module_map[card] for card in cards]
    if len(set(modules)) < len(modules):
        raise DeviceError(f"{JOB_CARDS}={job_gpus} names a module twice ({shown})", remedy=remedy)
    return ",".join(map(str, modules))


def find_modules(
    environment: Mapping[str, str], local_rank: int, ask: Callable[[], str] | None = None
) -> str | None:
    """Return the modules that this job may use; None if Slurm does not say or the user decided.

    Args:
        environment: The environment of this process.
        local_rank: Rank of this process on its host.
        ask: Returns the output of hl-smi; None runs it.

    Raises:
        DeviceError: The modules cannot be found, or there are fewer than processes on this host.
    """
    job_gpus = environment.get(JOB_CARDS)
    if not job_gpus:
        return None
    for name in (MODULES, MODULE):
        if environment.get(name):
            decision = "%s=%s decides which cards are used, not %s=%s"
            logger.info(decision, name, environment[name], JOB_CARDS, job_gpus)
            return None
    modules = choose_modules(job_gpus, read_module_map((ask or _ask)()))
    count = len(modules.split(","))
    if local_rank >= count:
        raise DeviceError(
            f"process {local_rank} on this host has no card: {JOB_CARDS}={job_gpus} names {count}",
            remedy="start one process per card",
        )
    logger.info("%s=%s: this job's modules are %s", JOB_CARDS, job_gpus, modules)
    return modules


def _ask() -> str:
    """Run hl-smi and return its output, which may be empty or incomplete."""
    try:
        return subprocess.run(
            QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(
            f"{JOB_CARDS} is set, and `{' '.join(QUERY)}` does not report "
            f"the modules of those cards ({error})",
            remedy=f"set {MODULES} to the modules of this job's cards",
        ) from error
