"""An end is told in one line, by its kind."""

import pytest

from dino.errors import DeviceError, OptionError
from dino.verify.base import NotRunError
from dino.verify.child import classify, describe


def chain(error, cause):
    try:
        raise error from cause
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DeviceError("no card"), "refused"),
        (OptionError("cannot be"), "refused"),
        (NotRunError("one card"), "not run"),
        (RuntimeError("shape mismatch"), "error"),
        (MemoryError(), "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory"),
        (
            chain(
                DeviceError("lower it"),
                RuntimeError("Allocation failed for size::268435456 (256)MB"),
            ),
            "memory",
        ),
    ],
)
def test_ends_have_kinds(error, kind):
    assert classify(error) == kind


def test_errors_are_one_line():
    assert describe(RuntimeError("one\n  two")) == "RuntimeError: one"
    assert describe(DeviceError("no  card\nhere")) == "no card"
