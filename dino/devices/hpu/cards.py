"""Which cards of a shared Slurm node are this job's. Needs no torch.

Slurm does not keep a job from the cards of others there: the only hint is SLURM_JOB_GPUS, the cards' indices, and the
bridge wants modules, whose order differs from node to node. Where HABANA_VISIBLE_MODULES or HLS_MODULE_ID is set, it
decides, and nothing is asked.
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
QUERY_SECONDS = 30.0  # it answers within one


def read_module_map(text: str) -> dict[int, int]:
    """Index to module of each card, from the answer of `hl-smi -Q index,module_id -f csv`; no other line counts."""
    rows = re.findall(r"^\s*(\d+)\s*,\s*(\d+)\s*$", text, flags=re.MULTILINE)
    return {int(index): int(module) for index, module in rows}


def choose_modules(job_gpus: str, module_map: Mapping[int, int]) -> str:
    """The value of HABANA_VISIBLE_MODULES for the cards of a job; local rank r takes the r-th.

    Args:
        job_gpus: SLURM_JOB_GPUS: indices and ranges of them, as "0,2" or "0-3".
        module_map: Index to module of each card of the node.

    Raises:
        DeviceError: It names no cards, or one whose module is not known, or two cards with one module.
    """
    remedy = f"set {MODULES} to the modules of this job's cards"
    found = re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", job_gpus.strip())
    if found is None:
        raise DeviceError(
            f"{JOB_CARDS}={job_gpus!r} is no list of cards, as 0,2 or 0-3", remedy=f"{remedy}"
        )
    ends = [[int(end) for end in part.split("-")] for part in job_gpus.strip().split(",")]
    cards = [card for first, *last in ends for card in range(first, (last or [first])[0] + 1)]
    shown = (
        ", ".join(f"{index} -> {module}" for index, module in sorted(module_map.items())) or "none"
    )
    missing = [card for card in cards if card not in module_map]
    if missing:
        words = " ".join(QUERY)
        raise DeviceError(
            f"{JOB_CARDS}={job_gpus}: `{words}` tells no module of card {missing[0]} ({shown})",
            remedy=f"{remedy}",
        )
    modules = [module_map[card] for card in cards]
    if len(set(modules)) < len(modules):
        raise DeviceError(
            f"{JOB_CARDS}={job_gpus} names a module twice ({shown})", remedy=f"{remedy}"
        )
    return ",".join(map(str, modules))


def find_modules(
    environment: Mapping[str, str], local_rank: int, ask: Callable[[], str] | None = None
) -> str | None:
    """The modules that this job may use, or None where Slurm does not say or the user has decided.

    Args:
        environment: Of this process.
        local_rank: Of this process on its host.
        ask: Gives the answer of hl-smi; None runs it.

    Raises:
        DeviceError: They cannot be found, or are fewer than this host's processes.
    """
    told = environment.get(JOB_CARDS)
    if not told:
        return None
    for name in (MODULES, MODULE):
        if environment.get(name):
            logger.info(
                "%s=%s decides which cards are used, not %s=%s",
                name,
                environment[name],
                JOB_CARDS,
                told,
            )
            return None
    modules = choose_modules(told, read_module_map((ask or _ask)()))
    if local_rank >= len(modules.split(",")):
        raise DeviceError(
            f"process {local_rank} of this host has no card: {JOB_CARDS}={told} names {len(modules.split(','))}",
            remedy="start one process a card",
        )
    logger.info("%s=%s: this job's modules are %s", JOB_CARDS, told, modules)
    return modules


def _ask() -> str:
    """Run hl-smi; what it does not answer is empty, and the map then incomplete."""
    try:
        return subprocess.run(
            QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(
            f"{JOB_CARDS} is set, and `{' '.join(QUERY)}` does not tell which modules those cards are ({error})",
            remedy=f"set {MODULES} to the modules of this job's cards",
        ) from error
