"""Flags: what only --device ipu asks."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # IpuConfig
    "pipeline": Spec(
        "blocks of the backbone on each IPU, one number an IPU; without it all is on one IPU"
    ),
    "replica": Spec(
        "copies of the model, each with its own part of a batch; under poprun it decides"
    ),
    "ga": Spec("micro-batches a copy accumulates before an update; the same as --accumulate_steps"),
    "di": Spec("updates a call of the compiled step"),
    "rts": Spec("share the optimizer's state out among copies (replicated tensor sharding)"),
    "ipu_per_replica": Spec("IPUs of a copy, told to poprun's side"),
    "output_mode": Spec(
        "which micro-batches' centers and losses come back: all, or the last of each copy"
    ),
    "async_type": Spec(
        "rebatch: loader processes make --rebatched_worker_size images at a time; async and normal: whole batches"
    ),
    "rebatched_worker_size": Spec("images a loader process hands over at a time with rebatch"),
    "loss_scale": Spec("factor on the loss; 128 with float16 and masterweight, else 1"),
    "executable_cache_dir": Spec("folder of compiled programs", spelling="--executable-cache-dir"),
    "ema_so": Spec("compiled ExpMovAvg op for the teacher; without it nothing needs compiling"),
    "gelu_type": Spec("erf: the exact GELU; tanh: the device's own form"),
    "set_freq": Spec("iterations between two changes of learning rate, weight decay and momentum"),
}
