"""`dino pretrain`: pre-train a backbone with DINO."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse_command
from dino.cli.parser import Help
from dino.cli.session import open_session, set_up_logging
from dino.config import as_recipe
from dino.training.choices import choose_settings, log_reasons
from dino.training.config import TrainConfig

ABOUT = Help(
    summary="Pre-train a vision backbone with DINO. `--data_path demo` trains on embedded images.",
    example="dino pretrain --data_path photos --output_dir output/run --preset auto",
    required=("data_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Check the command line, then train.

    Raises:
        DinoError: The flags or images are wrong, or the run ends with an explained error.
    """
    config, given, reasons = parse_command(TrainConfig, argv, choose_settings, about=ABOUT)

    from dino.api.training import build_pictures, build_scorers
    from dino.devices import choose_device
    from dino.runtime.folder_lock import hold_folder
    from dino.training.checks import check_options
    from dino.training.dry_run import check_dry_run, dry_run
    from dino.training.time_budget import fit_hours
    from dino.training.trainer import Trainer

    set_up_logging()
    choose_device(config.device.device)  # on a Mac this is the first line
    log_reasons(config, reasons)
    if config.run.dry_run:
        images = check_dry_run(config)
    else:
        source = check_options(config)
    with open_session(
        config,
        precision=config.precision,
        compiled=config.compiled,
        synthetic=config.train_data.synthetic_data,
        output_dir=config.run.output_dir,
    ) as run:
        if config.run.dry_run:
            dry_run(config, run, images)
            return
        config, more = fit_hours(config, given, run, source)
        log_reasons(config, more)
        reasons = {**reasons, **more}
        scorers = build_scorers(config, source, run)
        recipe = as_recipe(config, given, reasons)
        with hold_folder(config.run.output_dir, first=run.processes.is_rank_zero):
            pictures = build_pictures(config, source, run)
            Trainer(config, source, run, scorers, pictures=pictures, recipe=recipe).train()
