"""Checkpoints written beside training: a step waits only for the copy to host memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from dino import checkpoint
from dino.errors import CheckpointError
from dino.runtime.folder_lock import check_held
from dino.training.resume import select_published
from dino.weights.ours import save_published

logger = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run in a thread, one at a time.

    As a context it leaves only when the last one is written.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Prepare to write into the run's folder, keeping `keep` numbered checkpoints; 0: all."""
        self.folder, self.keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def begin(
        self,
        state: Mapping[str, Any],
        *,
        numbered: int | None,
        best: bool,
        written: Callable[[], None],
    ) -> None:
        """Start to write a checkpoint. Call `wait` first, best before the state is copied.

        Args:
            state: In host memory, and shared with nobody.
            numbered: Also keep it as `checkpointNNNN.pth` of this number.
            best: Also keep it as `checkpoint_best.pth`.
            written: Called in the thread when all files are there.
        """

        def write() -> None:
            check_held(self.folder)
            checkpoint.save_latest(self.folder, state)
            published = select_published(state)
            checkpoint.save_file(self.folder / checkpoint.TEACHER, published)
            save_published(self.folder / checkpoint.TEACHER_TENSORS, published)
            if numbered is not None:
                checkpoint.keep_copy(self.folder, numbered, self.keep)
            if best:
                checkpoint.keep_best(self.folder / checkpoint.LATEST)
            written()

        self._writing = self._thread.submit(write)

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written; wait for nothing.

        Raises:
            CheckpointError: The files before it are intact.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint is written.

        Raises:
            CheckpointError: It could not be; the files before it are intact.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Saver:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the last checkpoint; its error does not replace one that is on its way."""
        try:
            self.wait()
        except CheckpointError as failed:
            if error is None:
                raise
            logger.warning("%s", failed)
        finally:
            self._thread.shutdown()
