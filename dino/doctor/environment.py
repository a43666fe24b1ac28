"""Checks variables that the Habana bridge reads at import. Mapping and texts in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dino.devices.hpu.environment import find_refused
from dino.devices.hpu.software import Release
from dino.doctor.report import Fact, Problem
from dino.doctor.software import LINE_124

OP_LISTS: Mapping[str, str] = {
    "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST": "bf16 op list",
    "PT_HPU_AUTOCAST_FP32_OPS_LIST": "fp32 op list",
}

VARIABLES: Mapping[str, str] = {
    "PT_HPU_FORCE_TANH_FOR_GELU": (
        "1 (the bridge's default) replaces exact GELU by its tanh form; a run sets 0"
    ),
    "PT_HPU_PLACE_ON_CPU": (
        "none: an operator that the card lacks is an error instead of a slow step"
    ),
    "PT_HPU_METRICS_FILE": "where the bridge writes its counters",
    "PT_HPU_RECIPE_CACHE_CONFIG": (
        "cache of compiled graphs between runs: folder, whether it is cleared at the start, MiB, "
        "and since 1.24 whether it is on NFS"
    ),
    "PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES": "not needed: all shapes are fixed",
    "PT_HPU_EAGER_ENABLE_GRADIENT_VIEW_LAYOUT_OPT": (
        "1: the vendor's advice for vision in eager mode; a run sets it"
    ),
    "SLURM_JOB_GPUS": "the cards of this Slurm job, by index, not by module",
    "HABANA_VISIBLE_MODULES": "the cards of this process's runs, by module number",
    "HABANA_VISIBLE_DEVICES": "the cards of the container; their numbers are not module numbers",
    "HLS_MODULE_ID": "the module this process takes",
    "HCCL_SOCKET_IFNAME": "network interface between hosts",
    "HCCL_OVER_OFI": "1: hosts communicate through libfabric",
    "MASTER_ADDR": "the host where processes rendezvous",
}


def describe_variables(environment: Mapping[str, str]) -> list[Fact]:
    """Return one fact for each known variable that is set."""
    return [
        Fact(name, f"{environment[name]} ({text})")
        for name, text in VARIABLES.items()
        if name in environment
    ]


def examine_op_lists(
    environment: Mapping[str, str],
    bridge: Release | None,
    read: Callable[[str], str],
    resolve: Callable[[str], str],
    find_unknown: Callable[[list[str]], list[str]],
) -> tuple[list[Fact], list[Problem]]:
    """Check the files that the two op-list variables name.

    Args:
        environment: Environment of the run.
        bridge: Release of the software.
        read: Returns a file's text with its line ends unchanged, or raises OSError or
            UnicodeDecodeError.
        resolve: Returns a file's real path.
        find_unknown: Filters a list of names to those that no torch operator has.
    """
    facts, problems = [], []
    for variable, name in OP_LISTS.items():
        path = environment.get(variable)
        if not path:
            facts.append(
                Fact(name, f"{variable} is unset: the bridge's own list, or the one --hmp writes")
            )
            continue
        try:
            text = read(path)
        except (OSError, UnicodeDecodeError) as error:
            facts.append(Fact(name, f"{path} (not readable)"))
            problems.append(_explain_unreadable(variable, path, error))
            continue
        lines = split_lines(text)
        refused = find_refused(resolve(path))
        if refused and (bridge is None or bridge >= LINE_124):
            problems.append(_explain_refused(variable, path, refused))
        note = f" (the 1.24 line reads no list below {refused})" if refused else ""
        facts.append(
            Fact(name, f"{path}: {len(lines)} lines, instead of the bridge's own list{note}")
        )
        problems += check_op_list(variable, lines, find_unknown)
    return facts, problems


def _explain_refused(variable: str, path: str, folder: str) -> Problem:
    cause = (
        f"{variable}={path}: its real path is below {folder}, where the bridge of the 1.24 line "
        "reads no lists: it warns once and uses its own"
    )
    remedy = (
        "a run gives the bridge a copy elsewhere; for other programs move the file, for example "
        "to /tmp"
    )
    return Problem(cause, remedy, blocking=False)


def _explain_unreadable(variable: str, path: str, error: Exception) -> Problem:
    cause = (
        f"{variable}={path} cannot be read ({error}): a run with --precision bf16 refuses to "
        "start, and the bridge alone warns once and uses its own list"
    )
    remedy = (
        "set it to the absolute path of a text file; relative paths start at the folder where "
        "Python was started"
    )
    return Problem(cause, remedy, blocking=False)


def split_lines(text: str) -> list[str]:
    """Split at newlines as the bridge does: no line is trimmed or skipped."""
    return text.removesuffix("\n").split("\n") if text else []


def check_op_list(
    variable: str, lines: list[str], find_unknown: Callable[[list[str]], list[str]]
) -> list[Problem]:
    """Report lines that match no operator; the bridge itself checks no names."""
    problems = []
    dirty = [
        f"{number} {line!r}"
        for number, line in enumerate(lines, start=1)
        if not line or line != line.strip()
    ]
    if dirty:
        cause = f"{variable}: the bridge trims nothing, so these lines never match: {_some(dirty)}"
        problems.append(
            Problem(
                cause,
                "write one name per line with Unix line ends; no spaces, comments or empty lines",
                False,
            )
        )
    names = [line.strip() for line in lines if line.strip()]
    unknown = set(find_unknown(names)) | {name for name in names if name.endswith(("_", "_out"))}
    if unknown:
        cause = (
            f"{variable}: no operator that autocast knows has these names, and the bridge does not "
            "report it: "
        )
        remedy = (
            "use names of ATen functions (cross_entropy_loss, not cross_entropy); iadd and truediv "
            "do nothing"
        )
        problems.append(
            Problem(cause + _some([name for name in names if name in unknown]), remedy, False)
        )
    return problems


def _some(words: list[str], most: int = 5) -> str:
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")
