"""Flags: the doctor, verify and submit."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # ExaminationConfig
    "probe": Spec("hpu only: multiply two small matrices on a free card, in a process of its own"),
    # ClusterConfig
    "ngpus": Spec("devices of each node, and so its processes"),
    "nodes": Spec("nodes"),
    "timeout": Spec("minutes after which the job saves and is queued again"),
    "partition": Spec("Slurm partition"),
    "use_volta32": Spec("GPUs with 32 GB only (Slurm constraint volta32gb)", switch=True),
    "comment": Spec("comment handed to Slurm; some clusters ask for one"),
    "gres": Spec(
        "what the cluster calls the devices, without their number, as gpu:hl225; by default hpu or ipu where that is "
        "the --device, else GPUs by Slurm's own word"
    ),
    "cluster": Spec("slurm, or local for processes on this machine; slurm where srun is found"),
    # EvidenceConfig
    "size": Spec(
        "quick: small networks and few steps, at most four minutes; full: the real ones, at most ten; by default full "
        "on a card and quick on the cpu"
    ),
    "only": Spec("numbers of the steps to run; all eight by default"),
    "patience": Spec("factor on every time limit, for a machine that is only slow"),
}
