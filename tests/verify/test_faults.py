"""On a simulated card each injected fault is named in the report, as what it is; and what hangs is
gone afterwards."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dino.verify import plan
from dino.verify.base import QUICK, Setting, Variant
from dino.verify.conclusion import conclude
from dino.verify.page import write_page
from dino.verify.report import build_report
from dino.verify.runner import Runner
from dino.verify.steps import operators, product
from tests import hpu_simulator
from tests.verify.test_families import find_family

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        hpu_simulator.why_unavailable() is not None,
        reason=f"no simulated hpu: {hpu_simulator.why_unavailable()}",
    ),
]
FAULT = "HPU_SIMULATOR_FAULT"
WANTED = (
    "aten::gelu",
    "aten::_softmax",
    "aten::native_layer_norm",
)  # what is left of the replay here, and their backwards


class Quiet:
    """Nobody watches."""

    def begin(self, number, title, label):
        pass

    def say(self, text):
        pass

    def end(self, report):
        pass


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """One server for all faults; each is put into the card of its own process."""
    hpu_simulator.load_extension()
    folder = tmp_path_factory.mktemp("verify")
    setting = Setting(device="hpu", size=QUICK, modes=("lazy", "compiled", "eager"), folder=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(hpu_simulator.PACKAGE))
        patch.setenv("PYTHONPATH", str(hpu_simulator.PACKAGE))
        with Runner(setting) as started:
            yield started


def report_of(runner, name, step, limit=300.0):
    """The report of one step of a whole run, as text."""
    found = plan.run_step(runner, plan.STEPS.index(name) + 1, step, limit, Quiet())
    report = build_report(
        [found], runner.setting, conclude([found], runner.setting), seconds=1.0, stopped=False
    )
    return found, json.dumps(report) + write_page(report, "x")


def restrict(step, variants):
    """A step that runs these only."""
    return SimpleNamespace(**{**vars(step), "list_variants": lambda setting: variants})


@pytest.fixture
def replay(runner):
    """The report of a short operator replay with a fault; a label of its own keeps its outcomes
    from the others'."""
    from dino.verify.operators import list_operators

    names = list_operators("fp32", batch=1)
    kept = {next(name for name in names if name.startswith(wanted)) for wanted in WANTED}

    def run(fault):
        label = fault.replace(":", "_")
        variant = operators.list_variants(runner.setting)[0]
        options = {
            **variant.options,
            "skip": [name for name in names if name not in kept],
            "within": 5.0,
        }
        given = replace(variant, label=label, options=options, environment={FAULT: fault})
        return report_of(runner, "operators", restrict(operators, [given]))

    return run


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        (
            "refuse:aten::gelu",
            "fail",
            "missing (RuntimeError: aten::gelu is not yet supported on HPU.)",
        ),
        ("wrong:aten::gelu", "fail", "inaccurate"),
        ("hang:aten::gelu", "fail", "failing (no progress for 5 s"),
        ("oom:aten::gelu", "fail", "memory"),
        ("kill:aten::gelu", "fail", "failing (the process was killed by SIGKILL"),
        ("fallback:aten::gelu", "slow", "fell back"),
    ],
)
def test_the_replay_names_the_operator_and_what_it_does(replay, fault, status, told):
    found, text = replay(fault)
    figures = found.findings[0].figures
    odd = [
        (each["operator"].partition(".")[0], f"{each['status']} ({each['detail']})")
        for each in figures["outcomes"]
    ]
    assert found.status == status and [name for name, _ in odd] == ["aten::gelu"], figures
    assert told in odd[0][1]
    assert told in text and "aten::gelu" in text
    assert figures["counts"]["pass"] == len(WANTED) - 1, "the other operators were run all the same"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("oom:aten::mm", "out of memory: the card's memory is full"),
        ("kill:aten::mm", "the process was killed by SIGKILL during: fp32, 128 x 128"),
    ],
)
def test_a_step_tells_how_a_mode_ended_and_the_others_run(runner, fault, told):
    lazy = Variant(label="lazy", device="hpu", mode="lazy", environment={FAULT: fault})
    right = Variant(label="right", device="hpu", mode="eager")
    found, text = report_of(runner, "product", restrict(product, [lazy, right]))
    assert [part.status for part in found.findings] == ["fail", "pass"]
    assert told in found.findings[0].summary and told in text and found.findings[0].remedy


def test_what_hangs_is_ended_at_its_limit_with_all_its_processes(runner):
    hangs = Variant(label="eager", device="hpu", mode="eager", environment={FAULT: "hang:aten::mm"})
    found, text = report_of(runner, "product", restrict(product, [hangs]), limit=8.0)
    assert (
        found.findings[0].summary.startswith("did not finish within 8 s") and found.status == "fail"
    )
    assert "--patience 4" in text
    assert set(find_family([], runner.token)) == {runner.server.pid}
