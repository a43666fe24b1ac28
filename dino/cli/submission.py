"""A training run as a job of Slurm, or of this machine, through submitit: saved and queued again until it is done."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from dino.cli.options import as_words
from dino.cli.session import exit_code
from dino.config import chosen, setting
from dino.errors import DinoError, Interrupted, OptionError
from dino.training.config import TrainConfig

JOB_FILES = "submitit"  # folder of the job's own files: what it is to run, its log lines, where its processes meet
OWN_FOLDER = (
    "output/%j"  # where a job writes that was given no --output_dir; %j is the job's number
)
MOST_TIMEOUTS = 30  # how often a job is queued again after its time was up, as in the original
SIGNAL_DELAY = (
    120  # seconds from the signal to the end of a Slurm job, as in the original: time to save
)
MEMORY_GB = 40  # host memory for each device, as in the original

Command = Callable[[Sequence[str]], None]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What to ask a cluster for, through submitit."""

    ngpus: int = setting(8, least=1)
    nodes: int = setting(2, least=1)
    timeout: int = setting(2800, least=1)
    partition: str = "learnfair"
    use_volta32: bool = False
    comment: str = ""
    gres: str | None = None
    cluster: str | None = setting(None, choices=("slurm", "local"))


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(TrainConfig):
    """Submit a pre-training run to Slurm; every flag of main_dino.py may follow.

    %j in --output_dir stands for the job's number; without the flag it is output/%j. The job's own files lie in
    OUTPUT_DIR/submitit, or, where the number is part of the path, in a folder of that name beside it.
    """

    submit: ClusterConfig = ClusterConfig()


def submit(config: SubmitConfig, given: Collection[str], command: Command, root: Path) -> str:
    """Hand a training run to the cluster.

    Args:
        config: What to ask the cluster for, and the run's own options.
        given: Names of the settings that the user gave; the job is given them.
        command: The training command; importable from `root`, takes the words of its command line.
        root: Folder that the job's processes import from.

    Returns:
        One line that names the job and its log.

    Raises:
        DinoError: submitit is missing, the request cannot be meant, or the cluster refuses it.
    """
    if "dist_url" in given:
        raise OptionError(
            "--dist_url is not for jobs, whose processes meet in their output folder",
            remedy="leave it out",
        )
    output = Path(config.run.output_dir if "output_dir" in given else OWN_FOLDER).absolute()
    words = as_words(TrainConfig, config, set(given) - {"output_dir"})
    meeting = choose_job_folder(output) / f"meeting_{uuid.uuid4().hex}"
    task = TrainingTask(
        command=command, words=tuple(words), output=str(output), meeting=str(meeting)
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(root), os.environ.get("PYTHONPATH")])
    )
    try:
        executor = build_executor(config, choose_job_folder(output))
        job = executor.submit(task)
    except (OSError, ValueError, RuntimeError) as error:
        raise OptionError(f"the job cannot be submitted: {error}") from error
    return f"submitted job {job.job_id} to {executor.cluster}; log lines in {job.paths.stdout}"


def choose_job_folder(output: Path) -> Path:
    """The folder of job files: in the output folder or, as %j is not known before the job runs, in the one it is in."""
    return next(path for path in (output, *output.parents) if "%j" not in str(path)) / JOB_FILES


def build_executor(config: SubmitConfig, folder: Path) -> Any:
    """Describe the job to submitit, with its files in `folder`; one process a device.

    Raises:
        DinoError: submitit is missing.
        RuntimeError: Slurm is asked for and srun is not found.
        ValueError: Several nodes of this machine.
    """
    asked = config.submit
    executor = import_submitit().AutoExecutor(
        folder=folder,
        cluster=asked.cluster,
        slurm_max_num_timeout=MOST_TIMEOUTS,
        local_max_num_timeout=MOST_TIMEOUTS,
    )
    executor.update_parameters(
        name="dino",
        nodes=asked.nodes,
        tasks_per_node=asked.ngpus,
        cpus_per_task=max(1, int(chosen(config.data, "num_workers"))),
        mem_gb=MEMORY_GB * asked.ngpus,
        timeout_min=asked.timeout,
        slurm_partition=asked.partition,
        slurm_signal_delay_s=SIGNAL_DELAY,
        slurm_constraint="volta32gb" if asked.use_volta32 else None,
        slurm_comment=asked.comment or None,
        **name_devices(config.device.device, asked.ngpus, asked.gres),
    )
    return executor


def name_devices(device: str | None, count: int, resource: str | None = None) -> dict[str, Any]:
    """How a node's devices are asked for: GPUs by Slurm's own word, hpu and ipu as a generic resource of that name.

    A device that is chosen at start counts as a GPU, because the machine that submits cannot look into the nodes. A
    cluster that calls them something else has its name in `resource`.

    Raises:
        OptionError: A name for the devices of a run that has none.
    """
    if device == "cpu":
        if resource:
            raise OptionError(
                f"--gres {resource} asks for devices that --device cpu has no use for",
                remedy="leave it out",
            )
        return {}
    resource = resource or (device if device in ("hpu", "ipu") else None)
    return {"slurm_gres": f"{resource}:{count}"} if resource else {"gpus_per_node": count}


def import_submitit() -> ModuleType:
    """Import submitit, which only this command needs.

    Raises:
        DinoError: It is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise DinoError(
            f"run_with_submitit.py needs submitit ({error}); install it: pip install submitit"
        ) from error
    return submitit


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What each process of the job runs; submitit stores it, calls it, and asks it how the job goes on.

    Attributes:
        command: The training command.
        words: Its command line, but for what the job decides.
        output: Output folder; %j in it stands for the job's number.
        meeting: Start of the name of a file over which the processes meet; unique among submissions.
        attempt: How often the job was queued again.
    """

    command: Command
    words: tuple[str, ...]
    output: str
    meeting: str
    attempt: int = 0

    def __call__(self) -> None:
        """Train; saved and queued again where submitit's signal came.

        Raises:
            SystemExit: The command's exit code, if it is not 0.
        """
        place = import_submitit().JobEnvironment()
        os.environ.update(describe_place(place))
        request = RequeueRequest(signal.Signals[f"SIG{place.USR_SIG}"])
        code = exit_code(lambda: self.command(self.complete_words(place.job_id)))
        if code == Interrupted.exit_code:
            request.finish(slurm=place.cluster == "slurm")
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """Tell submitit what to run next time: the same run, which continues from its output folder."""
        return import_submitit().helpers.DelayedSubmission(replace(self, attempt=self.attempt + 1))

    def complete_words(self, job: str) -> list[str]:
        """Add the output folder and the meeting point.

        The file must not be one that an earlier attempt left: its name changes with every submission, every requeue by
        submitit and every requeue by Slurm itself, and is the same for all processes.
        """
        meeting = f"{self.meeting}_{self.attempt}_{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        return [
            *self.words,
            f"--output_dir={self.output.replace('%j', job)}",
            f"--dist_url=file://{meeting}",
        ]


def describe_place(place: Any) -> dict[str, str]:
    """Write submitit's knowledge of this process as torchrun's variables, which win over those of Slurm."""
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
    }


class RequeueRequest:
    """Lets the training loop save before submitit queues the job again.

    Submitit's own handler queues and ends the job at once, which would lose all work since the last checkpoint; it acts
    on SIGUSR2 (or what SUBMITIT_PREEMPT_SIGNAL says), sent to all processes when the time is nearly up or the job is
    preempted. The training loop saves on SIGUSR1 and SIGTERM, and only while it runs. They share the signals so:

    - SIGUSR2 is passed on as SIGUSR1. The loop agrees with the other processes, saves, and leaves with code 75; then
      submitit's handler queues the job (on rank 0) and the others just end.
    - SIGUSR1 while the loop does not run (imports, building, meeting) goes straight to submitit's handler: whatever
      there is to save is saved already.
    - SIGTERM makes the loop save and leave, without a requeue: scancel sends it too. Slurm also announces a preemption
      with it, and queues the job again by itself only if it has not ended before; so a Slurm job waits for its end.
    """

    def __init__(self, number: signal.Signals) -> None:
        """Take over submitit's signal `number`."""
        self.number = number
        self.handler: Any = signal.getsignal(number)  # submitit has set it before it calls the task
        self.came = (
            number == signal.SIGUSR1
        )  # then the loop takes it for its own, and every stop counts as this one
        signal.signal(signal.SIGUSR1, self.handler)
        if number != signal.SIGUSR1:
            signal.signal(number, self._pass_on)

    def finish(self, *, slurm: bool) -> None:
        """Go on after the loop saved and left.

        Raises:
            SystemExit: The job is queued again, or, on ranks other than 0, will be.
            RuntimeError: It was queued too often; submitit's own error, which ends the job as failed.
        """
        if not self.came:
            time.sleep(
                SIGNAL_DELAY * slurm
            )  # a signal that comes now still reaches submitit's handler
            return
        for number in (signal.SIGUSR1, self.number):
            signal.signal(number, signal.SIG_IGN)
        self.handler(self.number, None)  # rank 0 does not come back from here
        raise SystemExit(
            0
        )  # an error's code could make Slurm end rank 0 before it has queued the job

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        signal.raise_signal(signal.SIGUSR1)
