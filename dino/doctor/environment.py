"""Variables that the Habana bridge reads once, when it is imported; a mapping and texts in, findings out."""

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
    "PT_HPU_FORCE_TANH_FOR_GELU": "1 (the bridge's default): exact GELU becomes its tanh form; a run here sets 0",
    "PT_HPU_PLACE_ON_CPU": "none: an operator the card lacks is an error and not a slow step",
    "PT_HPU_METRICS_FILE": "where the bridge writes its counters",
    "PT_HPU_RECIPE_CACHE_CONFIG": "compiled graphs kept between runs: folder, cleared at the start, MiB, and "
    "from 1.24 on whether it is on NFS",
    "PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES": "not needed: all shapes here are fixed",
    "PT_HPU_EAGER_ENABLE_GRADIENT_VIEW_LAYOUT_OPT": "1: the vendor's advice for vision in eager mode; a run sets it",
    "SLURM_JOB_GPUS": "the cards of this Slurm job, by index and not by module",
    "HABANA_VISIBLE_MODULES": "the cards of this process's runs, by module number",
    "HABANA_VISIBLE_DEVICES": "the cards of the container, numbered otherwise than modules",
    "HLS_MODULE_ID": "the module this process takes",
    "HCCL_SOCKET_IFNAME": "network interface by which hosts meet",
    "HCCL_OVER_OFI": "1: between hosts by libfabric",
    "MASTER_ADDR": "the host where processes meet",
}


def describe_variables(environment: Mapping[str, str]) -> list[Fact]:
    """One fact for each known variable that is set."""
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
    """What the two op-list variables lead to.

    Args:
        environment: Of the run.
        bridge: Release of the software.
        read: Gives a file's text with its line ends as they are, or raises OSError or UnicodeDecodeError.
        resolve: Gives a file's real path.
        find_unknown: Those of some names that no operator of torch has.
    """
    facts, problems = [], []
    for variable, name in OP_LISTS.items():
        path = environment.get(variable)
        if not path:
            facts.append(
                Fact(name, f"{variable} unset: the bridge's own list, or the one --hmp writes")
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
        beside = f" (the 1.24 line reads none below {refused})" if refused else ""
        facts.append(
            Fact(name, f"{path}: {len(lines)} lines, in place of the bridge's own list{beside}")
        )
        problems += check_op_list(variable, lines, find_unknown)
    return facts, problems


def _explain_refused(variable: str, path: str, folder: str) -> Problem:
    cause = f"{variable}={path}: its real path lies below {folder}, and there the bridge of the 1.24 line reads no lists"
    remedy = (
        "a run here gives the bridge a copy elsewhere; for other programs move it, to /tmp for one"
    )
    return Problem(f"{cause}: it warns once and uses its own", remedy, blocking=False)


def _explain_unreadable(variable: str, path: str, error: Exception) -> Problem:
    cause = (
        f"{variable}={path} cannot be read ({error}): a run with --precision bf16 refuses that, and the bridge by "
        "itself warns once and uses its own list"
    )
    remedy = "give the full path of a text file; relative ones start at the folder where Python was started"
    return Problem(cause, remedy, blocking=False)


def split_lines(text: str) -> list[str]:
    """Lines as the bridge reads them: cut at newlines, nothing trimmed, nothing left out."""
    return text.removesuffix("\n").split("\n") if text else []


def check_op_list(
    variable: str, lines: list[str], find_unknown: Callable[[list[str]], list[str]]
) -> list[Problem]:
    """Lines that match no operator; the bridge takes lines as they are and checks no names."""
    problems = []
    dirty = [
        f"{place} {line!r}"
        for place, line in enumerate(lines, start=1)
        if not line or line != line.strip()
    ]
    if dirty:
        cause = f"{variable}: the bridge trims nothing, so these lines never match: {_some(dirty)}"
        problems.append(
            Problem(
                cause, "one name a line, no spaces, comments or empty lines, Unix line ends", False
            )
        )
    names = [line.strip() for line in lines if line.strip()]
    unknown = set(find_unknown(names)) | {name for name in names if name.endswith(("_", "_out"))}
    if unknown:
        cause = f"{variable}: no operator that autocast knows has these names, and the bridge does not say so: "
        remedy = "use names of ATen functions (cross_entropy_loss, not cross_entropy); iadd and truediv do nothing"
        problems.append(
            Problem(cause + _some([name for name in names if name in unknown]), remedy, False)
        )
    return problems


def _some(words: list[str], most: int = 5) -> str:
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")
