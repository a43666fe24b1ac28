"""Variables that the Habana bridge reads once, when it is imported; a mapping and texts in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dino.doctor.report import Fact, Problem

OP_LISTS: Mapping[str, str] = {
    "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST": "bf16 op list",
    "PT_HPU_AUTOCAST_FP32_OPS_LIST": "fp32 op list",
}

# Sets of modules that the vendor's documentation allows for 2 and 4 cards.
ALLOWED_MODULES: Mapping[int, tuple[str, ...]] = {2: ("0,1", "2,3", "4,5", "6,7"), 4: ("0,1,2,3", "4,5,6,7")}
MODULES = 8

VARIABLES: Mapping[str, str] = {
    "PT_HPU_FORCE_TANH_FOR_GELU": "1 (the bridge's default): exact GELU becomes its tanh form; a run here sets 0",
    "PT_HPU_PLACE_ON_CPU": "none: an operator the card lacks is an error and not a slow step",
    "PT_HPU_METRICS_FILE": "where the bridge writes its counters",
    "PT_HPU_RECIPE_CACHE_CONFIG": "folder of compiled graphs kept between runs; on a local disk",
    "PT_HPU_ENABLE_REFINE_DYNAMIC_SHAPES": "not needed: all shapes here are fixed",
    "HABANA_VISIBLE_MODULES": "the cards of this process's runs, by module number",
    "HABANA_VISIBLE_DEVICES": "the cards of the container, numbered otherwise than modules",
    "HLS_MODULE_ID": "the module this process takes",
    "HCCL_SOCKET_IFNAME": "network interface by which hosts meet",
    "HCCL_OVER_OFI": "1: between hosts by libfabric",
    "MASTER_ADDR": "the host where processes meet",
}


def describe_variables(environment: Mapping[str, str]) -> list[Fact]:
    """One fact for each known variable that is set."""
    return [Fact(name, f"{environment[name]} ({text})") for name, text in VARIABLES.items() if name in environment]


def check_modules(environment: Mapping[str, str]) -> list[Problem]:
    """Choices of cards that cannot work, or that the documentation does not allow."""
    problems = []
    chosen = environment.get("HABANA_VISIBLE_MODULES")
    if chosen is not None:
        problems += _check_visible(chosen)
    if "HLS_MODULE_ID" in environment and "LOCAL_RANK" not in environment:
        module = environment["HLS_MODULE_ID"]
        cause = f"HLS_MODULE_ID={module} is set by hand: every process of a run takes that one card"
        problems.append(Problem(cause, "unset it; the bridge gives each process its own", blocking=False))
    return problems


def read_modules(environment: Mapping[str, str]) -> set[int] | None:
    """The modules that HABANA_VISIBLE_MODULES names; None for all of them."""
    words = environment.get("HABANA_VISIBLE_MODULES", "").split(",")
    numbers = {int(word) for word in words if word.strip().isdecimal()}
    return numbers or None


def _check_visible(chosen: str) -> list[Problem]:
    words = [word.strip() for word in chosen.split(",")]
    valid = [word for word in words if word.isdecimal() and int(word) < MODULES]
    said = f"HABANA_VISIBLE_MODULES={chosen}"
    if len(valid) < len(words) or len(set(valid)) < len(words):
        remedy = f"give each module once, from 0 to {MODULES - 1}, as in 0,1,2,3; or unset it for all"
        return [Problem(f"{said} is not a list of different module numbers", remedy)]
    allowed = ALLOWED_MODULES.get(len(words), ())
    if len(words) in {1, MODULES} or ",".join(sorted(words)) in allowed:
        return []
    sets = "; ".join(text for group in ALLOWED_MODULES.values() for text in group)
    cause = f"{said} is no set of cards that the documentation allows: a run may end with 'Device acquire failed'"
    return [Problem(cause, f"one card, all {MODULES}, or one of: {sets}", blocking=False)]


def examine_op_lists(
    environment: Mapping[str, str], read: Callable[[str], str], find_unknown: Callable[[list[str]], list[str]]
) -> tuple[list[Fact], list[Problem]]:
    """What the two op-list variables lead to.

    Args:
        environment: Of the run.
        read: Gives a file's text with its line ends as they are, or raises OSError or UnicodeDecodeError.
        find_unknown: Those of some names that no operator of torch has.
    """
    facts, problems = [], []
    for variable, name in OP_LISTS.items():
        path = environment.get(variable)
        if path is None:
            facts.append(Fact(name, f"{variable} unset: the bridge's own list, or the one --hmp writes"))
            continue
        try:
            text = read(path)
        except (OSError, UnicodeDecodeError) as error:
            facts.append(Fact(name, f"{path} (not readable)"))
            problems.append(_explain_unreadable(variable, path, error))
            continue
        lines = split_lines(text)
        facts.append(Fact(name, f"{path}: {len(lines)} lines, in place of the bridge's own list"))
        problems += check_op_list(variable, lines, find_unknown)
    return facts, problems


def _explain_unreadable(variable: str, path: str, error: Exception) -> Problem:
    cause = f"{variable}={path} cannot be read ({error}): the bridge warns once and uses its own list"
    remedy = "give the full path of a text file; relative ones start at the folder where Python was started"
    return Problem(cause, remedy, blocking=False)


def split_lines(text: str) -> list[str]:
    """Lines as the bridge reads them: cut at newlines, nothing trimmed, nothing left out."""
    return text.removesuffix("\n").split("\n") if text else []


def check_op_list(variable: str, lines: list[str], find_unknown: Callable[[list[str]], list[str]]) -> list[Problem]:
    """Lines that match no operator; the bridge takes lines as they are and checks no names."""
    problems = []
    dirty = [f"{place} {line!r}" for place, line in enumerate(lines, start=1) if not line or line != line.strip()]
    if dirty:
        cause = f"{variable}: the bridge trims nothing, so these lines never match: {_some(dirty)}"
        problems.append(Problem(cause, "one name a line, no spaces, comments or empty lines, Unix line ends", False))
    names = [line.strip() for line in lines if line.strip()]
    unknown = set(find_unknown(names)) | {name for name in names if name.endswith(("_", "_out"))}
    if unknown:
        cause = f"{variable}: no operator that autocast knows has these names, and the bridge does not say so: "
        remedy = "use names of ATen functions (cross_entropy_loss, not cross_entropy); iadd and truediv do nothing"
        problems.append(Problem(cause + _some([name for name in names if name in unknown]), remedy, False))
    return problems


def _some(words: list[str], most: int = 5) -> str:
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")
