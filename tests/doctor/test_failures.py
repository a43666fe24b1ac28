"""The words that the bridge and the card fail with, and what stands behind them."""

import pytest

from dino.doctor.failures import explain_import, judge_product
from dino.doctor.report import Problem

IMPORTS = {
    "No module named 'habana_frameworks'": "is not installed",
    "No module named 'habana_frameworks.torch'": "is not installed",
    "Stock PyTorch version is not supported in Lazy mode": "in lazy mode the bridge refuses a torch",
    "AssertionError: neither HPU fork nor CPU upstream": "one bridge for the vendor's torch",
    "AssertionError: habana_frameworks.torch only supports PyTorch upstream": "one bridge for the vendor's torch",
    "AttributeError: 'NoneType' object has no attribute 'startswith'": "one bridge for the vendor's torch",
    "ImportError: libSynapse.so: cannot open shared object file": "a library of the Gaudi software is missing",
    "ImportError: undefined symbol: _ZN3c10": "not of the same release",
    "no answer in 120 s": "no answer in 120 s",
    "ValueError: odd": "is installed but cannot be imported: ValueError: odd",
}


@pytest.mark.parametrize("message", IMPORTS)
def test_why_the_bridge_cannot_be_imported(message):
    problem = explain_import(message)
    assert (
        IMPORTS[message] in problem.cause
        and problem.cause.count(message) == 1
        and problem.blocking
        and problem.remedy
    )


def test_what_versions_say_explains_an_import_better_than_its_message():
    problem = explain_import("AssertionError", [Problem("torch was replaced", "a fresh container")])
    assert problem.cause == "the bridge cannot be imported (AssertionError): torch was replaced"


# Longer messages hold the words of shorter ones; the one that tells most decides.
PRODUCTS = {
    "RuntimeError: synStatus=8 [Device not found] Device acquire failed.": "left over after Ctrl-C",
    "RuntimeError: synStatus 26 [Generic failure] Device acquire failed.": "another process holds it",
    "Device Acquire Failed": "runtimeClassName habana",
    "FATAL ERROR :: PT_SYNHELPER Graph compile failed. synStatus=synStatus 26 [Generic failure].": "GC_KERNEL_PATH",
    "RuntimeError: synStatus=26 [Generic failure]": "a mix of releases or does not match the driver",
    "Allocation failed for size::1024": "memory is full",
    "no answer in 180 s": "does not answer",
    "undefined symbol: synEventRecord": "not of the same release",
    "killed by SIGSEGV": "on the card failed",
}


@pytest.mark.parametrize("message", PRODUCTS)
def test_why_the_product_failed(message):
    fact, (problem,) = judge_product(None, message, "lazy")
    assert fact.value == "failed in lazy mode"
    assert (
        PRODUCTS[message] in problem.cause
        and message in problem.cause
        and problem.blocking
        and problem.remedy
    )


def test_a_right_product_is_a_fact_and_wrong_numbers_are_a_problem():
    assert judge_product({"garbled": 0, "wrong": 0}, None, "eager") == (
        ("product", "correct, on the card in eager mode"),
        [],
    )
    for answer in ({"garbled": 5, "wrong": 16384}, {"garbled": 0, "wrong": 1}, {}):
        fact, (problem,) = judge_product(answer, None, "eager")
        assert (
            "wrong numbers" in fact.value
            and problem.blocking
            and "iommu=pt intel_iommu=on" in problem.remedy
        )
