"""Which cards a Slurm job has, by the numbers that the bridge knows them by. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from dino.errors import DeviceError


def read_module_map(text: str) -> dict[int, int]:
    """Index -> module, from what `hl-smi -Q index,module_id -f csv` printed; lines of another shape are passed over."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return {int(row[0]): int(row[1]) for row in rows if len(row) == 2 and all(map(_is_number, row))}


def choose_modules(job_gpus: str, module_map: Mapping[int, int]) -> str:
    """The value of HABANA_VISIBLE_MODULES for the cards of SLURM_JOB_GPUS, in their order.

    Raises:
        DeviceError: The map lacks a card, or the text names none.
    """
    words = [word.strip() for word in job_gpus.split(",")]
    if not all(_is_number(word) and int(word) in module_map for word in words):
        raise DeviceError(
            f"SLURM_JOB_GPUS={job_gpus} cannot be mapped to modules: hl-smi names the cards "
            f"{', '.join(map(str, module_map)) or '(none)'}; set HABANA_VISIBLE_MODULES by hand"
        )
    return ",".join(str(module_map[int(word)]) for word in words)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
