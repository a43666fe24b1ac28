"""Printing after the reader has gone."""

import errno
import logging
import os
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from dino.runtime.output import Console, losing_output


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has ended, as tee does at Ctrl-C."""
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8", buffering=1) as stream:
        os.close(reader)
        yield stream


def test_log_lines_that_nobody_reads_are_lost(
    unread: TextIO, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.Logger("toy")
    logger.addHandler(Console(unread))
    for _ in range(2):
        logger.warning("line")
    unread.write("and so is what else is printed\n")
    unread.flush()
    assert capsys.readouterr() == ("", "")


def test_a_wrong_log_call_is_still_shown(
    unread: TextIO, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.Logger("toy")
    logger.addHandler(Console(unread))
    logger.warning("%d", "no number")
    assert "TypeError" in capsys.readouterr().err


def test_a_block_prints_what_it_can(unread: TextIO) -> None:
    with losing_output(unread):
        unread.write("lost\n")
    unread.write("the stream leads nowhere from now on\n")


def test_a_full_disk_loses_only_the_lines_that_do_not_fit() -> None:
    class Full:
        def fileno(self) -> Any:
            raise AssertionError("not redirected: there may be space again")

    with losing_output(Full()):
        raise OSError(errno.ENOSPC, "full")


def test_other_errors_pass(unread: TextIO) -> None:
    with pytest.raises(ValueError, match="work"), losing_output(unread):
        raise ValueError("work")
