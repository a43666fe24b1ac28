"""The report has the form that its schema number promises, and holds no names."""

import json
import math

import pytest

from dino.verify.base import WORST_FIRST
from dino.verify.conclusion import Conclusion, conclude
from dino.verify.page import write_page
from dino.verify.report import SCHEMA, build_report
from tests.verify.samples import SETTING, finding, step

TEXT, NUMBER, ANY = (str,), (int, float), object
NAME_OR_NONE = (str, type(None))
REPORT = {  # of schema 1; a change of this table is a new number
    "schema": (int,),
    "made": TEXT,
    "package": NAME_OR_NONE,
    "device": TEXT,
    "size": TEXT,
    "modes": [TEXT],
    "seconds": NUMBER,
    "stopped": (bool,),
    "status": WORST_FIRST,
    "steps": [
        {
            "number": (int,),
            "name": TEXT,
            "title": TEXT,
            "status": WORST_FIRST,
            "summary": TEXT,
            "remedy": NAME_OR_NONE,
            "seconds": NUMBER,
            "parts": [
                {
                    "name": TEXT,
                    "device": NAME_OR_NONE,
                    "mode": NAME_OR_NONE,
                    "precision": NAME_OR_NONE,
                    "status": WORST_FIRST,
                    "summary": TEXT,
                    "remedy": NAME_OR_NONE,
                    "seconds": NUMBER,
                    "figures": ANY,
                    "log": [TEXT],
                }
            ],
        }
    ],
    "conclusion": {"mode": NAME_OR_NONE, "precision": NAME_OR_NONE, "reason": TEXT, "next": TEXT},
}


def check_form(value, form, place="report"):
    """Every key is there, no other is, and each value is of its kind."""
    if form is ANY:
        return
    if isinstance(form, dict):
        assert value.keys() == form.keys(), place
        for name, inner in form.items():
            check_form(value[name], inner, f"{place}.{name}")
    elif isinstance(form, list):
        for number, inner in enumerate(value):
            check_form(inner, form[0], f"{place}[{number}]")
    elif isinstance(form[0], str):
        assert value in form, place
    else:
        assert isinstance(value, form), place


def build(*reports, **more):
    settings = {"seconds": 12.345, "stopped": False, **more}
    return build_report(reports, SETTING, conclude(reports, SETTING), **settings)


SECRETS = ("janedoe", "secrethost", "/home/janedoe/x", "/data/mine")


@pytest.fixture
def hostile(monkeypatch):
    """A report all of whose texts name somebody."""
    monkeypatch.setenv("USER", "janedoe")
    monkeypatch.setenv("HOSTNAME", "secrethost")
    text = "janedoe at secrethost read /home/janedoe/x and /data/mine/y"
    part = finding(
        "lazy bf16",
        "fail",
        text,
        remedy=text,
        figures={text: [text, {"x": text}]},
        log=f"{text}\n{text}",
    )
    return build(step("facts", part), step("golden", reason=text))


def test_the_form_is_that_of_the_schema(hostile):
    check_form(hostile, REPORT)
    assert hostile["schema"] == SCHEMA == 1
    check_form(build(), REPORT)


def test_the_report_is_json_and_holds_no_name(hostile):
    text = json.dumps(hostile, allow_nan=False) + write_page(hostile, "verify_report.json")
    assert not [secret for secret in SECRETS if secret in text]
    assert "<user> at <host> read <path> and <path>" in text


def test_what_is_not_finite_becomes_null():
    figures = {"nan": math.nan, "inf": [math.inf, {"deep": -math.inf}], "fine": 1.5}
    part = build(step("golden", finding(figures=figures)))["steps"][0]["parts"][0]
    assert part["figures"] == {"nan": None, "inf": [None, {"deep": None}], "fine": 1.5}


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["pass", "slow", "not run"], "slow"),
        (["slow", "fail", "pass"], "fail"),
        (["not run", "pass"], "pass"),
        (["not run"], "not run"),
        ([], "not run"),
    ],
)
def test_a_step_is_as_its_worst_part(statuses, expected):
    report = build(
        step("golden", *(finding(f"lazy {place}", each) for place, each in enumerate(statuses)))
    )
    assert report["steps"][0]["status"] == report["status"] == expected


def test_the_page_has_a_line_a_step_and_one_next_thing():
    reports = [
        step("facts", finding("machine", "pass", "torch 2.10")),
        step(
            "golden",
            finding("lazy fp32", "pass"),
            finding("eager fp32", "fail", "head is wrong", remedy="do not"),
        ),
        step("speed", reason="not requested"),
    ]
    report = build(*reports)
    page = write_page(report, "verify_report.json")
    lines = page.splitlines()
    assert [line for line in lines if line.startswith("1  Facts ")] == [
        "1  Facts   pass     torch 2.10"
    ]
    assert (
        "3  Golden  fail     head is wrong" in lines
        and "7  Speed   not run  not requested" in lines
    )
    assert "   eager fp32  fail     head is wrong" in lines and "-> do not" in page
    assert len([line for line in lines if line.startswith("next:")]) == 1
    assert "to send back:  verify_report.json" in page and max(map(len, lines)) <= 120
    assert "stopped early" not in page
    assert "stopped early" in write_page({**report, "stopped": True}, "x")


def test_a_conclusion_of_nothing_is_told():
    report = build_report(
        [],
        SETTING,
        Conclusion(mode=None, precision=None, reason="r", next="n"),
        seconds=0,
        stopped=True,
    )
    assert "mode to use:   r" in write_page(report, "x")
