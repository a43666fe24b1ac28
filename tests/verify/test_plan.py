"""Steps share their time, never keep one another from running, and end with what there is."""

from types import SimpleNamespace

import pytest

from dino.verify import plan
from dino.verify.base import Result
from tests.verify.samples import SETTING, finding, result, variant


class Show:
    def __init__(self):
        self.said = []

    def begin(self, number, title, label):
        self.said.append(label)

    def say(self, text):
        pass

    def end(self, report):
        pass


class FakeRunner:
    """Gives prepared results, and remembers how long each might have taken."""

    def __init__(self, **answers):
        self.setting, self.answers, self.is_warm, self.limits = SETTING, answers, True, {}

    def run(self, name, variant, limit):
        self.limits[variant.label] = limit
        answer = self.answers.get(variant.label, {})
        if answer is KeyboardInterrupt:
            raise KeyboardInterrupt
        return Result(variant=variant, **answer)


def build_step(*labels, **more):
    """A step that finds right whatever ends well."""
    return SimpleNamespace(
        **{
            "__name__": "dino.verify.steps.golden",
            "TITLE": "golden",
            "list_variants": lambda setting: [variant(label) for label in labels],
            "judge": lambda results, setting: [finding(of=each.variant) for each in results],
            **more,
        }
    )


def run(runner, step, limit=100.0):
    return plan.run_step(runner, 3, step, limit, Show())


@pytest.mark.parametrize(("size", "most"), [("full", 600), ("quick", 240)])
def test_all_limits_together_are_ten_minutes_and_four(size, most):
    assert plan.LIMITS[size].keys() == set(plan.STEPS) and sum(plan.LIMITS[size].values()) <= most


def test_no_variant_takes_more_than_half_of_what_is_left_but_the_last():
    runner = FakeRunner()
    run(runner, build_step("lazy", "compiled", "eager"))
    assert [round(limit) for limit in runner.limits.values()] == [50, 50, 100]


def test_without_time_a_variant_is_not_begun():
    runner = FakeRunner()
    report = run(runner, build_step("lazy", "eager"), limit=0.5)
    assert runner.limits == {} and {part.status for part in report.findings} == {"not run"}
    assert "no time was left" in report.findings[0].summary and report.status == "not run"


def test_failures_of_some_keep_nothing_from_running():
    kinds = {"a": "hang", "b": "killed", "c": "error", "d": "memory", "e": "refused", "f": "time"}
    runner = FakeRunner(
        **{label: {"kind": kind, "error": f"it is {kind}"} for label, kind in kinds.items()}
    )
    report = run(runner, build_step(*kinds, "g"))
    assert [part.variant.label for part in report.findings] == [*kinds, "g"]
    assert [part.status for part in report.findings] == ["fail"] * 6 + ["pass"]
    for part, kind in zip(report.findings, kinds.values(), strict=False):
        assert f"it is {kind}" in part.summary and part.remedy and part.figures["kind"] == kind
    assert report.findings[3].summary.startswith("out of memory: ")


def test_figures_that_nobody_expected_fail_their_step_alone():
    def judge(results, setting):
        raise KeyError("errors")

    report = run(FakeRunner(), build_step("lazy", "eager", judge=judge))
    assert [part.status for part in report.findings] == ["fail", "fail"]
    assert "not understood (KeyError: 'errors')" in report.findings[0].summary


def test_what_follows_of_a_result_runs_next_and_replaces_it():
    again = variant("lazy", options={"skip": ["x"]})
    step = build_step(
        "lazy",
        "eager",
        follow=lambda found, setting: [again] if found.kind and not found.variant.options else [],
    )
    show, runner = Show(), FakeRunner(lazy={"kind": "hang", "error": "x"})
    report = plan.run_step(runner, 3, step, 100.0, show)
    assert show.said == ["lazy", "lazy", "eager"]
    assert [part.variant.options for part in report.findings] == [{"skip": ["x"]}, {}]


def test_ctrl_c_keeps_what_the_step_had_found():
    with pytest.raises(plan.Stopped) as stopped:
        run(FakeRunner(eager=KeyboardInterrupt), build_step("lazy", "eager", "compiled"))
    assert [part.variant.label for part in stopped.value.report.findings] == ["lazy"]


def excused(version, monkeypatch, **more):
    monkeypatch.setattr(plan, "find_version", lambda *names: version)
    return plan.explain(result(more.pop("label", "lazy fp32"), **more))


@pytest.mark.parametrize(
    ("version", "more", "status"),
    [
        ("2.10.0+cpu", {"kind": "refused", "error": "no lazy mode"}, "not run"),
        ("2.10.0a0+gitc1e5ed4", {"kind": "refused", "error": "no lazy mode"}, "fail"),
        ("2.10.0+cpu", {"kind": "error", "error": "wrong"}, "fail"),
        ("2.10.0+cpu", {"kind": "refused", "error": "no card", "label": "eager fp32"}, "fail"),
        ("2.10.0+cpu", {"kind": "not run", "error": "one card", "label": "eager fp32"}, "not run"),
        (
            "2.10.0",
            {"kind": "error", "error": "InvalidCxxCompiler: No working C++ compiler found"},
            "not run",
        ),
    ],
)
def test_what_a_machine_cannot_have_is_no_failure(version, more, status, monkeypatch):
    assert excused(version, monkeypatch, **more).status == status
