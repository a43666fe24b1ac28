"""Pre-train with DINO: `python main_dino.py --data_path demo --output_dir ./output/demo`; `--help` lists the flags."""

import sys
from collections.abc import Sequence

from dino.cli.options import parse_command
from dino.cli.session import exit_code, open_session, set_up_logging
from dino.config import as_recipe
from dino.training.config import TrainConfig
from dino.training.preset import apply_preset, log_reasons


def main(argv: Sequence[str] | None = None) -> None:
    """Check the command line, then train."""
    options, given, reasons = parse_command(TrainConfig, argv, apply_preset)

    from dino.evaluation.knn import build_online_knn
    from dino.training.checks import check_options
    from dino.training.dry_run import check_dry_run, rehearse
    from dino.training.trainer import Trainer

    set_up_logging()
    log_reasons(options, reasons)
    if options.run.dry_run:
        check_dry_run(options)
    else:
        source = check_options(options)
    with open_session(
        options,
        precision=options.precision,
        compiled=options.compiled,
        synthetic=options.train_data.synthetic_data,
        output_dir=options.run.output_dir,
    ) as run:
        if options.run.dry_run:
            rehearse(options, run)
        else:
            score = None
            if options.run.eval_knn_every:
                score = build_online_knn(
                    options.data,
                    run,
                    image_size=options.crops.global_crops_size,
                    in_chans=options.student.chosen_in_chans,
                    data_limit=options.train_data.data_limit,
                )
            Trainer(options, source, run, score, recipe=as_recipe(options, given, reasons)).train()


if __name__ == "__main__":
    sys.exit(exit_code(main))
