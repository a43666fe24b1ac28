"""Examines a machine with Gaudi cards: software, cards, host, and a product on a card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dino.devices.hpu import software as installed
from dino.devices.hpu.mode import VARIABLE, Mode
from dino.devices.hpu.software import BRIDGE_PACKAGES, Release, read_release
from dino.doctor import machine
from dino.doctor.environment import describe_variables, examine_op_lists
from dino.doctor.failures import explain_import, judge_product
from dino.doctor.hl_smi import (
    MAP_QUERY,
    QUERY,
    Card,
    Holder,
    check_cards,
    choose_cards,
    describe_cards,
    describe_holders,
    find_driver,
    find_free,
    holders_of_files,
    parse_query,
    parse_table,
)
from dino.doctor.host import (
    check_firmware,
    check_huge_pages,
    check_kernel,
    check_loader,
    check_logs,
    read_firmware,
)
from dino.doctor.modules import check_modules, choose_by_slurm, read_modules
from dino.doctor.report import Case, Fact, Problem, Report
from dino.doctor.software import (
    check_build,
    check_driver,
    check_lazy,
    check_parts,
    decide_mode,
    describe_build,
)

# Vendor packages whose libraries must be of one release; habana-pyhlml only talks to the driver.
PARTS = r"habana-(torch-plugin|torch-dataloader|media-loader)"


class Cards(NamedTuple):
    """Cards, the processes that hold them, the driver, and the problem if no card is visible."""

    cards: list[Card]
    holders: list[Holder]
    driver: str | None
    unseen: Problem | None


def examine_gaudi(report: Report, case: Case) -> None:
    """Find out whether a run can use a card, and in which mode; add all findings to the report."""
    torch_version = case.probed.get("version") or installed.find_version("torch")
    mode, problems = decide_mode(case.lazy_mode, case.compiles, case.environment, torch_version)
    report.problems += problems
    report.facts.append(Fact("mode", _describe_mode(mode, torch_version)))
    bridge, error = _examine_bridge(report, case.environment, mode, torch_version)
    cards = _examine_cards(report)
    environment = _choose_cards(report, case.environment, cards, bridge)
    if cards.cards:
        _examine_host(report, environment, cards)
    unknown = set(case.probed.get("unknown", ()))
    facts, problems = examine_op_lists(
        environment,
        bridge,
        machine.read_text,
        machine.resolve,
        lambda names: [name for name in names if name in unknown],
    )
    report.facts += [*facts, *describe_variables(case.environment)]
    report.problems += problems
    chosen = choose_cards(cards.cards, read_modules(environment))
    # If no card is visible, there may still be one.
    free = bool(find_free(chosen, cards.holders)) or not cards.cards
    product, problems = _try_product(
        report, environment, mode, _why_no_product(report, case, error, free)
    )
    if cards.unseen is not None:
        # A card that computes exists, even if hl-smi does not show it.
        refuted = product or case.product == "later"
        report.problems.append(
            cards.unseen._replace(blocking=cards.unseen.blocking and not refuted)
        )
    report.problems += [*problems, *check_driver(cards.driver, bridge, product=product)]


def _describe_mode(mode: Mode | None, torch_version: str | None) -> str:
    if mode is None:
        return "none: the flags and variables contradict each other"
    return f"{mode.name}: {mode.reason}" if torch_version else "unknown without torch"


def _examine_bridge(
    report: Report, environment: Mapping[str, str], mode: Mode | None, torch_version: str | None
) -> tuple[Release | None, str | None]:
    """Report facts about the bridge and its torch; return its release and its import error.

    The bridge itself checks torch at import. If the import succeeds, doubts that come from version
    numbers alone are not reported.
    """
    version = installed.find_version(*BRIDGE_PACKAGES)
    release = read_release(version)
    _, error = machine.probe(machine.BRIDGE, _in_mode(environment, mode))
    parts = {name: number for name, number, _ in machine.list_distributions(PARTS)}
    report.facts += [
        Fact("torch build", describe_build(torch_version)),
        Fact(
            "bridge",
            (
                f"{version or 'not installed as a package'}, {'cannot' if error else 'can'} be "
                "imported"
            ),
        ),
        Fact(
            "vendor's parts",
            ", ".join(f"{name} {number}" for name, number in parts.items()) or "none",
        ),
    ]
    problems = [*check_build(torch_version, release), *check_lazy(mode, torch_version)]
    blocking = [problem for problem in problems if problem.blocking]
    if error is not None:
        report.problems.append(explain_import(error, blocking))
        blocking = blocking[:1]
    notes = [problem for problem in problems if problem not in blocking]
    report.problems += notes + check_parts(parts)
    return release, error


def _in_mode(environment: Mapping[str, str], mode: Mode | None) -> dict[str, str]:
    """Return the environment as a run completes it."""
    return {
        **environment,
        **({} if mode is None else {VARIABLE: environment.get(VARIABLE, str(int(mode.lazy)))}),
    }


def _examine_cards(report: Report) -> Cards:
    """Report driver, cards and their holders; the result has a problem if there are no cards."""
    query = machine.run_tool(
        ("hl-smi", "-Q", ",".join(QUERY), "-f", "csv"), seconds=machine.TOOL_SECONDS
    )
    table = (
        query
        if query.error == "not found"
        else machine.run_tool(("hl-smi",), seconds=machine.TOOL_SECONDS)
    )
    listed, holders = parse_table(table.text)
    cards = parse_query(query.text) or listed
    files = machine.list_device_files()
    holders = holders or holders_of_files(machine.list_open_files())
    driver = find_driver(cards, table.text)
    report.facts += [
        Fact("hl-smi", table.error or ("works" if cards else "works, output not understood")),
        Fact("driver", driver or "unknown"),
        Fact("cards", str(len(cards) or len(files) or "none found")),
        *(Fact("card", line) for line in describe_cards(cards)),
        *([] if cards else [Fact("card", path) for path in files]),
        Fact("held by", describe_holders(holders) or "no process that is visible from here"),
    ]
    present = cards or [Card(index=number, name=path) for number, path in enumerate(files)]
    return Cards(present, holders, driver, _check_presence(cards, files, table))


def _check_presence(cards: list[Card], files: list[str], table: machine.Outcome) -> Problem | None:
    if cards:
        return None
    state = f"hl-smi: {table.error or 'works, but its output is not understood'}"
    if files:
        cause = f"{state}; driver release and module numbers could not be checked"
        return Problem(
            cause, "run hl-smi yourself, on the host if this container lacks it", blocking=False
        )
    cause = f"no cards are visible here ({state}; no device files /dev/accel/accel* or /dev/hl*)"
    remedy = (
        "start the container with --runtime=habana and HABANA_VISIBLE_DEVICES=all, or a pod with "
        "runtimeClassName habana; on the host load the driver"
    )
    return Problem(cause, remedy)


def _choose_cards(
    report: Report, environment: Mapping[str, str], cards: Cards, bridge: Release | None
) -> Mapping[str, str]:
    """Report which cards a run takes and whether it can; return the completed environment."""

    def ask() -> str:
        return machine.run_tool(("hl-smi", *MAP_QUERY), seconds=machine.TOOL_SECONDS).text

    environment, facts, problems = choose_by_slurm(environment, ask)
    generation = next((card.generation for card in cards.cards if card.generation), None)
    report.facts += facts
    report.problems += [
        *problems,
        *check_modules(environment, generation, bridge),
        *check_cards(cards.cards, cards.holders, read_modules(environment)),
    ]
    return environment


def _examine_host(report: Report, environment: Mapping[str, str], cards: Cards) -> None:
    """Report how the host is set up: notes only."""
    kernel = machine.read_kernel_file("sys/kernel/osrelease").strip()
    facts, problems = check_huge_pages(machine.read_kernel_file("meminfo"))
    report.facts += [Fact("kernel", kernel or "unknown"), *facts]
    report.problems += [
        *check_kernel(
            kernel, machine.read_kernel_file("cmdline"), machine.read_kernel_file("cpuinfo")
        ),
        *problems,
        *check_loader(environment, machine.is_there),
        *check_logs(environment, machine.is_there, machine.may_write),
    ]
    if cards.driver:
        listed = machine.run_tool(("hl-smi", "-L"), seconds=machine.TOOL_SECONDS)
        facts, problems = check_firmware(read_firmware(listed.text), cards.driver)
        report.facts += facts
        report.problems += problems


def _why_no_product(report: Report, case: Case, error: str | None, free: bool) -> str | None:
    """Return why no product is tried on a card; None if one is tried."""
    if case.product != "try":
        return "--probe false" if case.product == "never" else "that comes later"
    if error is not None:
        return "the bridge cannot be imported"
    if report.blocking:
        return "the problems below come first"
    return None if free else "no card seems free"


def _try_product(
    report: Report, environment: Mapping[str, str], mode: Mode | None, why_not: str | None
) -> tuple[bool | None, list[Problem]]:
    """Compute on a card in a child process; return whether it was correct, None if not tried."""
    if why_not is not None or mode is None:
        report.facts.append(Fact("product", f"not tried on a card: {why_not}"))
        return None, []
    answer, error = machine.probe(
        machine.PRODUCT, _in_mode(environment, mode), mode.compiles, seconds=machine.PRODUCT_SECONDS
    )
    fact, problems = judge_product(answer, error, mode.name)
    report.facts.append(fact)
    return not problems, problems
