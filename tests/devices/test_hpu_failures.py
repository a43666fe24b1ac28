"""What the errors of Gaudi's software mean: the words around a number decide, not the number
alone."""

import pytest

from dino.devices.hpu.failures import explain_failure, is_of_compiler

HELD, COMPILER = "another process holds it", "GC_KERNEL_PATH"
GONE, FULL = "Ctrl-C left behind", "memory is full; lower `batch_size_per_device`"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("synStatus=26 [Generic failure] Device acquire failed.", HELD),
        ("RuntimeError: Device acquire failed.", HELD),
        ("synStatus 8 [Device not found] Device acquire failed.", GONE),
        ("Device acquire failed. Device not found", GONE),
        ("Graph compile failed. synStatus=26 [Generic failure].", COMPILER),
        ("Graph compile failed", COMPILER),
        ("synCompile: compilation ended with synStatus 26", COMPILER),
        ("synStatus=26 [Generic failure]", "driver and software do not match"),
        ("synStatus=8 [Device not found]", GONE),
        ("Device not found", GONE),
        ("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::268435456 (256)MB", FULL),
    ],
)
def test_failures_of_the_card_are_explained(text, named):
    explained = explain_failure(text)
    assert named in explained and "\n" not in explained
    assert is_of_compiler(text) == (named == COMPILER)


@pytest.mark.parametrize(
    "text", ["shapes differ", "", "synStatus=1 [Success]", "synStatus=80 [Other]", "synStatus=260"]
)
def test_others_are_not(text):
    assert explain_failure(text) is None and not is_of_compiler(text)
