"""Real version strings and pairs are judged as public evidence says, and so are some that nobody
has met yet."""

import json
from pathlib import Path

import pytest

from dino.devices.hpu.software import is_vendor_torch, read_release
from dino.doctor.software import (
    check_build,
    check_driver,
    check_lazy,
    check_owners,
    check_parts,
    check_torch,
    decide_mode,
    describe_build,
    explain_refusal,
)

RELEASES = Path(__file__).resolve().parents[3] / "shared" / "facts" / "software_releases.json"

GOOD = [  # (torch, bridge): each is in use in public, or follows the same pattern
    ("2.5.1a0+git354fc07", "1.19.2.32"),
    ("2.6.0+hpu_1.20.0-543.git4952fce", "1.20.0.543"),
    ("2.6.0+hpu_1.21.2-76.gitabf798b", "1.21.2.76"),
    ("2.6.0+git4f3c1a2", "1.21.5-6"),
    ("2.7.1+hpu.1.22.2.32.git6dbe0a4", "1.22.2.32"),
    ("2.7.1a0+git0000000", "1.22.0.638"),
    ("2.9.0+hpu.1.23.0.695", "1.23.0.695"),
    ("2.9.0+hpu_1.23.1-25.git8598e6d", "1.23.1.25"),
    ("2.10.0a0+gitc1e5ed4", "1.24.0.1007"),
    ("2.11.0a0+git0000000", "1.24.1.482"),
    ("2.11.0+hpu_1.24.2-9.git1234567", "1.24.2.481"),
    ("2.12.0+hpu_1.25.0-1.git1234567", "1.25.0.1"),  # a release that this table does not know
]
REPLACED = [  # (torch, bridge, word): what pip brings instead
    ("2.14.1+cu130", "1.24.0.1007", "built for torch 2.10 or 2.11"),
    ("2.9.1", "1.21.0.555", "built for torch 2.6"),
    ("2.6.0+git4f3c1a2", "1.24.0.1007", "built for torch 2.10 or 2.11"),
    ("2.10.0+cu128", "1.24.0.1007", "+cu128 (AssertionError)"),
    ("2.11.0+rocm6.4", "1.24.1.482", "+rocm6.4 (AssertionError)"),
    ("2.10.0", "1.24.0.1007", "fails without a local version (AttributeError)"),
]


@pytest.mark.parametrize(("torch", "bridge"), GOOD)
def test_the_torch_of_a_container_is_the_vendors_and_has_lazy_mode(torch, bridge):
    assert is_vendor_torch(torch) and describe_build(torch).startswith("the vendor's")
    assert check_torch(torch) == [] == check_build(torch, read_release(bridge))
    mode, problems = decide_mode(None, None, {}, torch)
    assert mode.name == "lazy" and problems == [] == check_lazy(mode, torch)


@pytest.mark.parametrize(("torch", "bridge", "word"), REPLACED)
def test_a_torch_that_pip_replaced_is_recognized(torch, bridge, word):
    (problem,) = check_build(torch, read_release(bridge))
    assert word in problem.cause and "pip replaced" in problem.cause and problem.blocking
    assert "fresh container" in problem.remedy


@pytest.mark.parametrize("torch", ["2.10.0+cpu", "2.11.0+cpu", "2.11.0+cpu.cxx11.abi"])
def test_upstream_torch_is_a_normal_case_from_1_24_on(torch):
    assert (
        check_build(torch, (1, 24)) == []
        and describe_build(torch) == "upstream's for the CPU: compiled and eager mode"
    )
    mode, problems = decide_mode(None, None, {}, torch)
    assert mode.name == "compiled" and problems == [] == check_lazy(mode, torch)
    lazy, _ = decide_mode(True, None, {}, torch)
    assert "lazy mode needs the vendor's build" in check_lazy(lazy, torch)[0].cause


@pytest.mark.parametrize("torch", ["2.6.0", "2.6.0+cpu", "2.6.0+cu124"])
def test_before_1_24_another_build_of_the_right_release_is_a_note(torch):
    (problem,) = check_build(torch, (1, 21))
    assert "lazy mode is gone" in problem.cause and not problem.blocking


def test_without_a_known_bridge_nothing_is_said_of_torch():
    assert (
        check_build("2.14.1", None)
        == []
        == check_build(None, (1, 24))
        == check_build("odd", (1, 24))
    )
    assert "neither" in describe_build("2.14.1") and "neither" in describe_build(None)


def test_torch_below_the_floor_or_missing():
    assert (
        check_torch("2.10.0") == []
        and check_torch("2.4.1")[0].blocking
        and check_torch(None)[0].blocking
    )


@pytest.mark.skipif(
    not RELEASES.is_file(), reason="the facts of each release are in ../shared, which is not here"
)
def test_the_recorded_strings_of_every_release_are_good():
    judged = 0
    for release, facts in json.loads(RELEASES.read_text())["releases"].items():
        bridge = read_release(release)
        for text in facts.get("torch_local", {}).get("value", []):
            torch = text.split(" ")[0]
            assert check_build(torch, bridge) == [] or "+" not in torch, text
            judged += "+" in torch
        for driver in facts.get("drivers_seen", {}).get("value", []):
            assert all(
                not note.blocking
                for note in check_driver(driver.split(" ")[0], bridge, product=None)
            )
    assert judged >= 6


MODES = [  # (--lazy_mode, --compile, environment, torch, mode)
    (None, None, {}, "2.6.0+git1", "lazy"),
    (None, None, {}, "2.10.0+cpu", "compiled"),
    (None, True, {}, "2.6.0+git1", "compiled"),
    (False, None, {}, "2.6.0+git1", "eager"),
    (False, True, {}, "2.6.0+git1", "compiled"),
    (True, None, {}, "2.6.0+git1", "lazy"),
    (None, None, {"PT_HPU_LAZY_MODE": "1"}, "2.6.0+git1", "lazy"),
    (None, None, {"PT_HPU_LAZY_MODE": "0"}, "2.6.0+git1", "eager"),
    (None, None, {}, None, "compiled"),
]


@pytest.mark.parametrize(("lazy_mode", "compiles", "environment", "torch", "name"), MODES)
def test_the_mode_is_that_of_a_run(lazy_mode, compiles, environment, torch, name):
    mode, problems = decide_mode(lazy_mode, compiles, environment, torch)
    assert mode.name == name and mode.reason and problems == []


def test_flags_that_a_run_refuses_are_a_problem_with_its_words():
    mode, (problem,) = decide_mode(True, None, {"PT_HPU_LAZY_MODE": "0"}, "2.6.0+git1")
    assert mode is None and problem.blocking and "contradict each other" in problem.cause
    assert problem.remedy == "leave one out"
    mode, (problem,) = decide_mode(True, True, {}, "2.6.0+git1")
    assert mode is None and "`compile` contradict each other" in problem.cause


@pytest.mark.parametrize("value", ["2", "3", "yes"])
def test_a_value_that_is_not_for_training_is_lazy_and_a_note(value):
    mode, (problem,) = decide_mode(None, None, {"PT_HPU_LAZY_MODE": value}, "2.6.0+git1")
    assert (
        mode.name == "lazy"
        and not problem.blocking
        and f"PT_HPU_LAZY_MODE={value}" in problem.cause
    )


def test_a_line_without_a_remedy_points_to_the_page():
    assert explain_refusal("odd", blocking=False) == ("odd", "see Modes in docs/gaudi.md", False)


PAIRS = [  # (driver, bridge, words); the recorded ones first
    ("1.19.1-6f47ddd", (1, 20), "working in public"),
    ("1.20.1-366eb9c", (1, 21), "documentation of a cloud provider"),
    ("1.24.0-0a1b2c3", (1, 22), "containers train with it in public"),
    ("1.24.0-0a1b2c3", (1, 23), "containers train with it in public"),
    ("1.20.0-bd87f71", (1, 22), "list of images"),
    ("1.17.0-1", (1, 24), "no public report"),
    ("1.25.0-1", (1, 24), "no public report"),
    ("2.0.0", (1, 24), "no public report"),
]


@pytest.mark.parametrize(("driver", "bridge", "words"), PAIRS)
@pytest.mark.parametrize("product", [True, False, None])
def test_a_driver_of_another_release_is_a_note_whatever_the_product_was(
    driver, bridge, words, product
):
    (note,) = check_driver(driver, bridge, product=product)
    assert (
        not note.blocking
        and driver in note.cause
        and words in note.cause
        and "cannot" not in note.cause
    )
    assert {True: "was correct", False: "failed", None: "was not tried"}[product] in note.cause
    assert note.remedy.startswith("nothing to do") == (product is True)


@pytest.mark.parametrize(
    ("driver", "bridge"),
    [
        ("1.24.1-b336d5e", (1, 24)),
        ("1.21.3-abc", (1, 21)),
        (None, (1, 21)),
        ("odd", (1, 21)),
        ("1.21", None),
    ],
)
def test_a_driver_of_the_same_minor_release_or_an_unknown_one_is_nothing(driver, bridge):
    assert check_driver(driver, bridge, product=None) == []


def test_parts_of_several_releases_are_the_known_cause_of_a_failure():
    assert (
        check_parts({})
        == []
        == check_parts({"habana-torch-plugin": "1.24.0.1007", "habana-media-loader": "1.24.1.482"})
    )
    (note,) = check_parts(
        {"habana-torch-plugin": "1.22.2.32", "habana-torch-dataloader": "1.24.0.1007"}
    )
    assert (
        "habana-torch-plugin 1.22.2.32" in note.cause
        and "synStatus 26" in note.cause
        and not note.blocking
    )


def test_two_owners_of_cv2():
    one = ("opencv-python", "4.11.0", "/a")
    assert check_owners([]) == [] == check_owners([one])
    (note,) = check_owners([one, ("opencv-python-headless", "4.10.0", "/a")])
    assert (
        "overwrote" in note.cause
        and "pip uninstall -y opencv-python opencv-python-headless" in note.remedy
    )
    (note,) = check_owners([one, ("opencv-python-headless", "4.10.0", "/b")])
    assert "hides the other" in note.cause and not note.blocking
