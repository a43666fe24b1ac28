"""The fastest correct mode is the mode to use; the first failure decides what to do next."""

import pytest

from dino.verify.conclusion import conclude
from tests.verify.samples import SETTING, finding, step

RATES = {"lazy": 300.0, "compiled": 400.0, "eager": 100.0}


def evidence(wrong=(), failed=(), timed=tuple(RATES), looked=tuple(RATES)):
    """Reports in which `wrong` modes have other numbers than the CPU and `failed` ones end
    early."""
    parts = [
        finding(
            f"{mode} bf16",
            "fail" if mode in (*wrong, *failed) else "pass",
            remedy="not this mode",
            figures=figures,
        )
        for mode in looked
        for figures in [{"kind": "hang"} if mode in failed else {}]
    ]
    speeds = [
        finding(mode, of=finding(f"{mode} bf16").variant, figures={"images/s": RATES[mode]})
        for mode in timed
    ]
    speeds = [
        finding(
            figures=part.figures, of=type(part.variant)(**{**vars(part.variant), "label": mode})
        )
        for part, mode in zip(speeds, timed, strict=True)
    ]
    return [step("alignment", *parts), step("speed", *speeds)]


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "compiled"),
        ({"wrong": ["compiled"]}, "lazy"),
        ({"failed": ["compiled"]}, "lazy"),
        ({"wrong": ["compiled", "lazy"]}, "eager"),
        ({"wrong": list(RATES)}, None),
        ({"timed": ["eager"]}, "eager"),
        ({"looked": ["eager"]}, "eager"),
        ({"looked": []}, None),
    ],
)
def test_the_mode_is_the_fastest_of_those_that_something_found_right(given, mode):
    concluded = conclude(evidence(**given), SETTING)
    assert concluded.mode == mode and concluded.precision == ("bf16" if mode else None)


def test_what_was_found_of_every_mode_is_told():
    told = conclude(evidence(wrong=["compiled"], failed=["eager"]), SETTING).reason
    assert told.startswith("lazy bf16: correct (alignment), 300 images/s")
    assert (
        "compiled bf16 is wrong (step 5)" in told and "eager bf16 did not finish (step 5)" in told
    )


def test_a_product_of_matrices_is_about_every_number_format():
    reports = [step("product", finding("compiled", "fail")), *evidence()]
    assert conclude(reports, SETTING).mode == "lazy"


def test_the_next_thing_is_the_first_failure_then_the_first_slowness_then_to_train():
    slow = step("operators", finding("fp32", "slow", remedy="send it"))
    assert (
        conclude([slow, *evidence(wrong=["lazy"])], SETTING).next
        == "step 5, lazy bf16: not this mode"
    )
    assert conclude([slow, *evidence()], SETTING).next == "step 4, fp32: send it"
    trained = conclude(evidence(wrong=[], looked=["lazy"]), SETTING).next
    assert (
        trained
        == "train: python main_dino.py --device hpu --lazy_mode true --precision bf16 --data_path ..."
    )
    assert "python -m dino.verify" in conclude([], SETTING).next
