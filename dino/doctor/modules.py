"""Reports which cards a run gets: modules chosen by hand or by a Slurm job. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dino.devices.hpu.cards import choose_modules, read_module_map
from dino.devices.hpu.software import Release
from dino.doctor.report import Fact, Problem
from dino.doctor.software import LINE_124, explain_refusal
from dino.errors import DeviceError

# Sets of modules that the vendor's documentation allows for 2 and 4 cards.
ALLOWED: Mapping[int, tuple[str, ...]] = {
    2: ("0,1", "2,3", "4,5", "6,7"),
    4: ("0,1,2,3", "4,5,6,7"),
}
COUNT = 8


def read_modules(environment: Mapping[str, str]) -> set[int] | None:
    """Return the modules that HABANA_VISIBLE_MODULES names; None means all."""
    words = environment.get("HABANA_VISIBLE_MODULES", "").split(",")
    numbers = {int(word) for word in words if word.strip().isdecimal()}
    return numbers or None


def choose_by_slurm(
    environment: Mapping[str, str], ask: Callable[[], str]
) -> tuple[Mapping[str, str], list[Fact], list[Problem]]:
    """Complete the environment from SLURM_JOB_GPUS, which lists cards by index, as a run does.

    Args:
        environment: Environment of the run.
        ask: Returns the output of `hl-smi -Q index,module_id -f csv` here; empty if it fails.
    """
    job = environment.get("SLURM_JOB_GPUS")
    if not job:
        return environment, [], []
    try:
        by_index = read_module_map(ask())
        shown = ", ".join(f"{index} -> {module}" for index, module in sorted(by_index.items()))
        facts = [Fact("Slurm's map", f"index -> module: {shown or 'hl-smi does not report it'}")]
        chosen_by = next(
            (name for name in ("HABANA_VISIBLE_MODULES", "HLS_MODULE_ID") if environment.get(name)),
            None,
        )
        if chosen_by is not None:
            facts.append(
                Fact("Slurm's cards", f"SLURM_JOB_GPUS={job}; {chosen_by} is set and decides")
            )
            return environment, facts, []
        chosen = choose_modules(job, by_index)
    except DeviceError as error:
        return (
            environment,
            [Fact("Slurm's cards", f"SLURM_JOB_GPUS={job} cannot be mapped")],
            [explain_refusal(error)],
        )
    facts.append(
        Fact("Slurm's cards", f"SLURM_JOB_GPUS={job}: a run takes HABANA_VISIBLE_MODULES={chosen}")
    )
    return {**environment, "HABANA_VISIBLE_MODULES": chosen}, facts, []


def check_modules(
    environment: Mapping[str, str], generation: int | None, bridge: Release | None
) -> list[Problem]:
    """Report choices of cards that cannot work or that the documentation does not allow.

    Args:
        environment: Environment of the run.
        generation: Gaudi generation of the cards, 2 or 3; None if unknown.
        bridge: Release of the software.
    """
    problems = []
    chosen = environment.get("HABANA_VISIBLE_MODULES")
    if chosen is not None:
        problems += _check_visible(chosen, generation, bridge)
    if "HLS_MODULE_ID" in environment and "LOCAL_RANK" not in environment:
        module = environment["HLS_MODULE_ID"]
        cause = (
            f"HLS_MODULE_ID={module} is set by hand: every process of a run takes that same card"
        )
        if module.strip() == "0" and (bridge is None or bridge >= LINE_124):
            cause += ", and the bridge of the 1.24 line treats 0 in places as if no module were set"
        problems.append(
            Problem(cause, "unset it; the bridge gives each process its own", blocking=False)
        )
    return problems


def _check_visible(chosen: str, generation: int | None, bridge: Release | None) -> list[Problem]:
    words = [word.strip() for word in chosen.split(",")]
    valid = [word for word in words if word.isascii() and word.isdecimal() and int(word) < COUNT]
    said = f"HABANA_VISIBLE_MODULES={chosen}"
    if len(valid) < len(words) or len(set(valid)) < len(words):
        remedy = f"list each module once, from 0 to {COUNT - 1}, as in 0,1,2,3; or unset it for all"
        return [Problem(f"{said} is not a list of different module numbers", remedy)]
    allowed = "; ".join(text for group in ALLOWED.values() for text in group)
    sets = f"choose one card, all {COUNT}, or one of: {allowed}"
    if (
        len(words) > 1
        and len(words) % 2
        and generation == 3
        and bridge is not None
        and bridge >= LINE_124
    ):
        cause = (
            f"{said} names {len(words)} modules, but on Gaudi 3 the bridge of the 1.24 line fails "
            "with an odd number above 1 (AssertionError)"
        )
        return [Problem(cause, sets)]
    if len(words) in {1, COUNT} or ",".join(sorted(words)) in ALLOWED.get(len(words), ()):
        return []
    cause = (
        f"{said} is not a set of cards that the documentation allows: a run may end with "
        "'Device acquire failed'"
    )
    return [Problem(cause, sets, blocking=False)]
