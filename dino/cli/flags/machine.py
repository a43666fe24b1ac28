"""Flags: the doctor, verify and submit."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # ExaminationConfig
    "probe": Spec("hpu only: multiply two small matrices on a free card, in a child process"),
    # ClusterConfig
    "ngpus": Spec("devices per node, with one process each"),
    "nodes": Spec("number of nodes"),
    "timeout": Spec("minutes after which the job saves and is requeued"),
    "partition": Spec("Slurm partition"),
    "use_volta32": Spec("GPUs with 32 GB only (Slurm constraint volta32gb)", switch=True),
    "comment": Spec("comment for Slurm; some clusters require one"),
    "gres": Spec(
        "the cluster's name of the devices without their count, such as gpu:hl225; by default hpu "
        "or ipu for that --device, else GPUs by Slurm's own option"
    ),
    "cluster": Spec(
        "slurm, or local for processes on this machine; by default slurm if srun is found"
    ),
    # EvidenceConfig
    "size": Spec(
        "quick: small networks and few steps, at most four minutes; full: the real networks, at "
        "most "
        "ten; by default full on a card and quick on the cpu"
    ),
    "only": Spec("numbers of the steps to run; by default all eight"),
    "patience": Spec("factor on every time limit, for a slow machine"),
}
