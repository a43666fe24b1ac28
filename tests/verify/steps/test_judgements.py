"""What each step makes of the figures that its processes bring."""

import json
import math

import pytest

from dino.verify.base import QUICK, Result, Setting, Variant
from dino.verify.steps import alignment, cards, facts, golden, operators, product, speed, training
from tests.verify.samples import result, variant


@pytest.fixture
def setting(tmp_path):
    return Setting(device="hpu", size=QUICK, modes=("lazy", "compiled", "eager"), folder=tmp_path)


def judge(step, setting, *results):
    return step.judge(results, setting)


FACTS = {"facts": [], "versions": {"torch": "2.10"}, "host": {"cores of this process": 8}}
NOTE, BLOCK = (
    {"cause": kind, "remedy": f"mend {kind}", "blocking": kind == "block"}
    for kind in ("note", "block")
)


@pytest.mark.parametrize(
    ("problems", "status", "summary"),
    [
        ([], "pass", "torch 2.10, 8 cores"),
        ([NOTE], "pass", "1 note"),
        ([NOTE, BLOCK], "fail", "block"),
    ],
)
def test_facts_fail_where_the_doctor_says_that_nothing_can_run(problems, status, summary, setting):
    found = judge(facts, setting, result("machine", {**FACTS, "problems": problems}))[0]
    assert found.status == status and summary in found.summary
    assert found.remedy == ("mend block" if status == "fail" else None)


@pytest.mark.parametrize(("error", "status"), [(1e-7, "pass"), (3e-4, "fail"), (math.nan, "fail")])
def test_a_product_is_right_within_the_rounding_of_its_format(error, status, setting):
    figures = {"errors": {"fp32": error, "bf16": 1.7e-3}, "TFLOP/s": {"fp32": 1.0, "bf16": 2.0}}
    assert judge(product, setting, result("eager", figures))[0].status == status


def checks(**errors):
    return [{"name": name, "error": error, "limit": 1e-4} for name, error in errors.items()]


@pytest.mark.parametrize(
    ("figures", "status", "told"),
    [
        (
            {"checks": checks(head=1e-6, loss=5e-5)},
            "pass",
            "2 numbers correct; closest to its limit: loss 5.0e-05",
        ),
        ({"checks": checks(head=1e-6, loss=2e-4)}, "fail", "1 of 2 wrong, first loss 2.0e-04"),
        ({"checks": checks(head=math.inf)}, "fail", "1 of 1 wrong"),
        ({"checks": checks(head=math.nan)}, "fail", "1 of 1 wrong"),
        (
            {
                "checks": checks(head=0.0),
                "broken": {"ViT": "RuntimeError: aten::gelu is not yet supported"},
            },
            "fail",
            "aten::gelu",
        ),
    ],
)
def test_golden_numbers_are_right_within_their_limits(figures, status, told, setting):
    found = judge(golden, setting, result("lazy fp32", {"broken": {}, "missing": {}, **figures}))[0]
    assert found.status == status and told in found.summary


def outcome(operator, status="pass", detail="", microseconds=10.0):
    return {"operator": operator, "status": status, "detail": detail, "microseconds": microseconds}


@pytest.mark.parametrize(
    ("outcomes", "status", "told"),
    [
        (
            [outcome("aten::mm"), outcome("aten::add", microseconds=30.0)],
            "pass",
            "2 of 2 correct; the median launch takes 20 us",
        ),
        (
            [outcome("aten::mm"), outcome("aten::x", "not run", "torch has none", None)],
            "pass",
            "1 not run",
        ),
        (
            [outcome("aten::mm", "fell back", "the host"), outcome("aten::add")],
            "slow",
            "aten::mm fell back (the host)",
        ),
        (
            [outcome("aten::mm", "fell back"), outcome("aten::gelu", "inaccurate", "1e-1")],
            "fail",
            "aten::gelu inaccurate",
        ),
        (
            [outcome("aten::gelu", "missing", "not yet supported", None)],
            "fail",
            "aten::gelu missing (not yet supported)",
        ),
        ([outcome("aten::gelu", "failing", "hang", None)], "fail", "aten::gelu failing (hang)"),
        ([], "not run", "no operator"),
    ],
)
def test_operators_are_named_by_what_became_of_them(outcomes, status, told, setting):
    keep(setting, outcomes)
    found = judge(operators, setting, result("fp32"))[0]
    assert found.status == status and told in found.summary


def keep(setting, outcomes):
    path = setting.folder / "operators_fp32.jsonl"
    path.write_text("".join(f"{json.dumps(each)}\n" for each in outcomes), encoding="utf-8")


def replay(**more):
    options = {"format": "fp32", "skip": [], "batch": 1}
    return Result(variant=Variant(label="fp32", device="hpu", options=options), **more)


def test_a_process_that_is_lost_in_an_operator_is_begun_again_without_it(setting):
    lost = replay(kind="killed", error="killed by SIGKILL", last="aten::gelu")
    again = operators.follow(lost, setting)
    assert [each.options["skip"] for each in again] == [["aten::gelu"]]
    assert (
        operators.read_kept(setting.folder / "operators_fp32.jsonl")[0]["detail"]
        == "killed by SIGKILL"
    )
    same = Result(variant=again[0], kind="hang", error="no word", last="aten::gelu")
    assert operators.follow(same, setting) == [] == operators.follow(replay(), setting)
    assert operators.follow(replay(kind="time", last="aten::mm"), setting) == []


def table(**most):
    return {group: {"most": value, "mean": value / 2} for group, value in most.items()}


@pytest.mark.parametrize(
    ("apart", "own", "status"),
    [
        (5e-5, 0.0, "pass"),
        (5e-4, 0.0, "fail"),
        (1.9e-3, 2e-4, "pass"),  # ten times what the CPU's own bf16 is away
        (2.1e-3, 2e-4, "fail"),
        (math.inf, 2e-4, "fail"),
    ],
)
def test_steps_are_as_the_cpu_within_what_the_format_costs_there(apart, own, status, setting):
    figures = {"table": table(loss=1e-6, student=apart), "own": table(loss=0.0, student=own)}
    found = judge(alignment, setting, result("lazy bf16", figures))[0]
    assert found.status == status and (
        status == "pass" or found.summary.startswith("differs from the CPU: student")
    )


def test_tensors_are_grouped_by_what_and_where():
    from dino.training.alignment import Difference

    names = {
        "backbone.blocks.0.attn.qkv.bias": 1.0,
        "backbone.blocks.1.attn.proj.bias": 3.0,
        "head.last_layer.weight_v": 2.0,
    }
    rows = [
        Difference(what="student", name=name, most=most, mean=0.5) for name, most in names.items()
    ]
    rows.append(Difference(what="loss", name="3 steps", most=math.nan, mean=math.nan))
    grouped = alignment.compare_by_part(rows)
    assert grouped["student, attention"] == {"most": 3.0, "mean": 0.5}
    assert grouped["student, last layer"]["most"] == 2.0 and grouped["loss"]["most"] == math.inf


REFERENCE = Result(
    variant=Variant(label="CPU", device="cpu"), figures={"losses": [4.0, 3.5, 3.0], "knn": 50.0}
)
KNN = training.SIZES[QUICK].knn


@pytest.mark.parametrize(
    ("losses", "knn", "status"),
    [
        ([4.0, 3.5, 3.0], 50.0, "pass"),
        ([4.0, 3.5, 3.009], 50.1 - KNN, "pass"),
        ([4.0, 3.511, 3.0], 50.0, "fail"),
        ([4.0, 3.5, 3.0], 49.9 - KNN, "fail"),
        ([4.0, 3.5, 3.0], 80.0, "pass"),
        ([4.0, None, 3.0], 50.0, "fail"),
        ([4.0, 3.5], 50.0, "fail"),
        ([4.0, 3.5, math.nan], 50.0, "fail"),
    ],
)
def test_a_training_is_as_the_cpus_within_what_seeds_do(losses, knn, status, setting):
    one = result("eager fp32", {"losses": losses, "knn": knn})
    assert [each.status for each in judge(training, setting, REFERENCE, one)] == ["pass", status]


def test_without_the_cpus_training_nothing_is_said(setting):
    assert judge(training, setting, result("eager fp32", REFERENCE.figures))[0].status == "not run"


SPEED = {
    "images/s": 100.0,
    "batch": 4,
    "memory peak": 10**9,
    "reads freely": False,
    "launches a step": 40,
}


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        (
            {"host reads a step": 0, "cpu fallbacks": 0.0, "graph compilations": 0.0},
            "pass",
            "40 launches",
        ),
        ({"host reads a step": 2}, "slow", "the host waits"),
        ({"host reads a step": 2, "reads freely": True}, "pass", "2 host reads"),
        ({"host reads a step": 0, "cpu fallbacks": 5.0}, "slow", "operators run on the host (5)"),
        ({"host reads a step": 0, "graph compilations": 3.0}, "slow", "graphs are compiled (3)"),
    ],
)
def test_what_costs_time_in_every_step_is_slow(more, status, told, setting):
    found = judge(speed, setting, result("lazy", {**SPEED, **more}))[0]
    assert found.status == status and told in found.summary


def test_the_largest_batch_follows_of_a_modes_memory_in_full_only(setting):
    full = Setting(device="hpu", size="full", modes=setting.modes, folder=setting.folder)
    measured = Result(variant=variant("lazy"), figures={"largest batch": 224})
    assert [each.options for each in speed.follow(measured, full)] == [{"batch": 224}]
    assert speed.follow(measured, setting) == []
    switched = Result(
        variant=variant("lazy", options={"switch": "recompute"}), figures={"largest batch": 224}
    )
    assert speed.follow(switched, full) == []


@pytest.mark.parametrize(
    ("figures", "status"),
    [
        ({"cards": 1}, "not run"),
        ({"cards": 8}, "pass"),
        ({"table": table(student=1e-5), "GB/s": 10.0}, "pass"),
        ({"table": table(student=1e-2), "GB/s": 10.0}, "fail"),
        ({}, "pass"),
    ],
)
def test_two_cards_are_one(figures, status, setting):
    assert judge(cards, setting, result("lazy, two cards", figures))[0].status == status


def test_where_there_are_two_cards_one_and_two_are_compared(setting):
    def count(number):
        return Result(variant=cards.list_variants(setting)[0], figures={"cards": number})

    assert [each.processes for each in cards.follow(count(8), setting)] == [1, 2]
    assert cards.follow(count(1), setting) == []


@pytest.mark.parametrize(
    "step", [facts, product, golden, operators, alignment, training, speed, cards]
)
@pytest.mark.parametrize("size", ["quick", "full"])
def test_labels_are_unique_and_modes_are_the_devices(step, size, setting):
    chosen = Setting(device="hpu", size=size, modes=setting.modes, folder=setting.folder)
    variants = step.list_variants(chosen)
    labels = [each.label for each in variants]
    assert labels and len(set(labels)) == len(labels)
    assert {each.mode for each in variants if each.device == "hpu"} <= set(setting.modes)
