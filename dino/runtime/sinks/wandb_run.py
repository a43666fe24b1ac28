"""Weights & Biases: one run for an output folder, also after it resumes."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino.errors import OptionError
from dino.runtime.sinks.background import LAST_WAIT, Background
from dino.runtime.sinks.base import Jpeg, Sink, Start
from dino.runtime.sinks.run_ids import find_id, keep_id

logger = logging.getLogger(__name__)

SERVICE = "wandb"


def open_wandb(start: Start) -> Sink:
    """Check that there is a key, and reach W&B in the background.

    Raises:
        OptionError: There is no key.
    """
    import wandb

    if wandb.setup().settings.mode == "online":
        try:
            wandb.login(verify=False)  # the thread finds out whether the key is valid
        except wandb.Error as error:
            raise OptionError(
                f"`log_to` wandb: {error}",
                remedy="run wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline",
            ) from error
    kept = os.environ.get("WANDB_RUN_ID") or find_id(start, SERVICE)
    run = kept or secrets.token_hex(4)
    keep_id(start.folder, SERVICE, run)
    return Background(SERVICE, lambda: WandbRun(start.folder, run, is_new=not kept))


class WandbRun(Sink):
    """A run of W&B, whose step is the iteration; it keeps the first line of each iteration."""

    place = SERVICE

    def __init__(self, folder: Path, run: str, *, is_new: bool) -> None:
        """Begin or continue the run `run`.

        Raises:
            wandb.Error: W&B cannot be reached, or refuses.
        """
        import wandb

        name = folder.resolve().name if is_new and "WANDB_NAME" not in os.environ else None
        self.run = wandb.init(
            id=run,
            name=name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(folder)),
            reinit="create_new",  # a program may have a run of its own
            settings=wandb.Settings(console="off", silent=True, finish_timeout=LAST_WAIT),
        )
        self.first = self.run.step
        logger.info("wandb: run %s, %s", run, "offline" if self.run.offline else self.run.url)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self._log(dict(values), step)

    def add_images(self, images: Mapping[str, Jpeg], step: int) -> None:
        """Log pictures."""
        import wandb

        with tempfile.TemporaryDirectory() as folder:
            for index, (tag, jpeg) in enumerate(images.items()):
                file = Path(folder, f"{index}.jpg")
                file.write_bytes(jpeg.content)
                self._log({tag: wandb.Image(str(file))}, step)

    def add_settings(self, recipe: str, settings: Mapping[str, Any], step: int) -> None:
        """Write the settings to the run's config."""
        self.run.config.update(dict(settings), allow_val_change=True)

    def close(self, *, completed: bool) -> None:
        """Finish the run, as failed if it did not reach its end."""
        self.run.finish(exit_code=0 if completed else 1)

    def _log(self, values: dict[str, Any], step: int) -> None:
        if step >= self.first:
            self.run.log(values, step=step)
