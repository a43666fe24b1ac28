"""Flags for --device ipu only."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # IpuConfig
    "pipeline": Spec(
        "blocks of the backbone on each IPU, one number per IPU; by default all blocks are on one "
        "IPU"
    ),
    "replica": Spec(
        "copies of the model, each with its own part of a batch; under poprun, poprun decides"
    ),
    "ga": Spec("micro-batches that a copy accumulates per update; the same as --accumulate_steps"),
    "di": Spec("updates per call of the compiled step"),
    "rts": Spec("shard the optimizer's state across copies (replicated tensor sharding)"),
    "ipu_per_replica": Spec("IPUs per copy, as set on poprun's side"),
    "output_mode": Spec(
        "micro-batches whose centers and losses are returned: all, or the last of each copy"
    ),
    "async_type": Spec(
        "rebatch: loader processes make --rebatched_worker_size images at a time; async and "
        "normal: "
        "whole batches"
    ),
    "rebatched_worker_size": Spec("images per loader process and transfer with rebatch"),
    "loss_scale": Spec("factor on the loss; 128 with float16 and masterweight, else 1"),
    "executable_cache_dir": Spec("folder of compiled programs", spelling="--executable-cache-dir"),
    "ema_so": Spec("compiled ExpMovAvg op for the teacher; by default nothing needs compiling"),
    "gelu_type": Spec("erf: the exact GELU; tanh: the device's own form"),
    "set_freq": Spec("iterations between two changes of learning rate, weight decay and momentum"),
}
