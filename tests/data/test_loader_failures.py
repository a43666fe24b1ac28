"""An error in a loader process keeps its reason; memory is blamed only for killed processes."""

import contextlib
import gc
import logging
import os
import re
import signal
import weakref
from types import SimpleNamespace

import pytest
from torch.utils.data import Dataset

from dino.data.loader_failures import explain
from dino.data.loaders import read_items
from dino.errors import DataError


class Failing(Dataset):
    """Raises, or ends its process."""

    def __init__(self, failure: BaseException | int) -> None:
        self.failure = failure

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        if isinstance(self.failure, int):
            os.kill(os.getpid(), self.failure)
        raise self.failure


def read_failure(failure: BaseException | int) -> str:
    """The text of the error; keeps no frame alive, as `pytest.raises` would."""
    try:
        list(read_items(Failing(failure), workers=1))
    except DataError as error:
        return str(error)
    pytest.fail("no error")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (RuntimeError("expected 3\n  got 4"), "RuntimeError: expected 3 got 4"),
        (KeyError("label"), "KeyError: 'label'"),
        (ValueError(), "ValueError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), "UnicodeDecodeError: .*why"),
    ],
)
def test_the_reason_of_an_error_is_kept(
    failure: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "dino"):
        text = read_failure(failure)
    assert re.fullmatch(f"a loader process failed: {reason}", text)
    assert "memory" not in text
    assert "__getitem__" in caplog.text  # the traceback


def test_a_loader_is_gone_when_its_error_is_handled() -> None:
    """One that waits for the garbage collection ends somewhere else, for seconds, or in a child."""
    images = Failing(ValueError())
    gone = weakref.ref(images)
    gc.disable()
    try:
        with contextlib.suppress(DataError):
            list(read_items(images, workers=1))
        del images
        assert gone() is None
    finally:
        gc.enable()


def test_a_full_shared_memory_is_named() -> None:
    text = "unable to write to file </torch_1_2_3>: No space left on device (28)"
    assert read_failure(RuntimeError(text)) == (
        f"a loader process failed: RuntimeError: {text}; start the container with --ipc=host or a"
        " larger --shm-size, or lower `num_workers`"
    )


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (signal.SIGKILL, "if memory is short, try fewer `num_workers`"),
        (signal.SIGBUS, "start the container with --ipc=host or a larger --shm-size"),
        (signal.SIGSEGV, r"exit code -11 .*; `num_workers` 0 reads the images in the main process"),
    ],
)
def test_a_process_that_the_system_ends_names_the_likely_cause(
    number: signal.Signals, remedy: str
) -> None:
    error = RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly")
    workers = [SimpleNamespace(exitcode=None), SimpleNamespace(exitcode=-number)]
    explained = explain(error, workers)
    assert str(explained).startswith("a loader process died")
    with pytest.raises(DataError, match=remedy):
        raise explained


def test_a_killed_process_is_recognized() -> None:
    assert read_failure(signal.SIGKILL).endswith("if memory is short, try fewer `num_workers`")


def test_other_errors_stay_themselves() -> None:
    for error in (DataError("a.jpg cannot be decoded"), KeyError(3), RuntimeError("CUDA")):
        assert explain(error, []) is error
