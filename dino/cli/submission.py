"""Submits a training run to Slurm or this machine through submitit, and requeues it until done."""

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

JOB_FILES = "submitit"  # folder of the job's own files: its task, its logs, its rendezvous file
OWN_FOLDER = "output/%j"  # output folder without --output_dir; %j is the job number
MOST_TIMEOUTS = 30  # how often a job is requeued after a timeout, as in the original
# Seconds from the signal to the end of a Slurm job, as in the original: time to save.
SIGNAL_DELAY = 120
MEMORY_GB = 40  # host memory per device, as in the original

Command = Callable[[Sequence[str]], None]


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Resources to request from a cluster through submitit."""

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
    """Submit a pre-training run to Slurm; accepts every flag of `dino pretrain`.

    %j in --output_dir stands for the job number; the default is output/%j. The job's own files are
    in OUTPUT_DIR/submitit, or, if the job number is part of the path, in a folder of that name next
    to the job's folder.
    """

    submit: ClusterConfig = ClusterConfig()


def submit(config: SubmitConfig, given: Collection[str], command: Command, root: Path) -> str:
    """Hand a training run to the cluster.

    Args:
        config: Resources to request, and the options of the run.
        given: Names of the settings that the user gave; they are passed on to the job.
        command: The training command; importable from `root`, takes the words of its command line.
        root: Folder from which the job's processes import.

    Returns:
        One line that names the job and its log.

    Raises:
        DinoError: submitit is missing, the request is invalid, or the cluster refuses it.
    """
    if "dist_url" in given:
        raise OptionError(
            "--dist_url is not allowed here: a job's processes rendezvous in their output folder",
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
    """Return the folder of job files: in the output folder, or in its first parent without %j."""
    return next(path for path in (output, *output.parents) if "%j" not in str(path)) / JOB_FILES


def build_executor(config: SubmitConfig, folder: Path) -> Any:
    """Describe the job to submitit, with its files in `folder` and one process per device.

    Raises:
        DinoError: submitit is missing.
        RuntimeError: Slurm is requested but srun is not found.
        ValueError: Several nodes are requested on this machine.
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
    """Return how to request a node's devices: GPUs by Slurm's own option, hpu and ipu as --gres.

    A device that is chosen at start counts as a GPU, because the submitting machine cannot look
    into the nodes. `resource` is the cluster's own name for the devices, if it has one.

    Raises:
        OptionError: `resource` is given although the run uses the CPU.
    """
    if device == "cpu":
        if resource:
            raise OptionError(
                f"--gres {resource} requests devices that --device cpu does not use",
                remedy="leave it out",
            )
        return {}
    resource = resource or (device if device in ("hpu", "ipu") else None)
    return {"slurm_gres": f"{resource}:{count}"} if resource else {"gpus_per_node": count}


def import_submitit() -> ModuleType:
    """Import submitit, which only this command needs.

    Raises:
        DinoError: submitit is not installed.
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
    """The task of each process of the job; submitit stores it, calls it, and asks how to continue.

    Attributes:
        command: The training command.
        words: Its command line, without what the job decides.
        output: Output folder; %j stands for the job number.
        meeting: Name prefix of the rendezvous file; unique among submissions.
        attempt: How often the job was requeued.
    """

    command: Command
    words: tuple[str, ...]
    output: str
    meeting: str
    attempt: int = 0

    def __call__(self) -> None:
        """Train; save and requeue the job if submitit's signal came.

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
        """Return the next task for submitit: the same run, which resumes from its output folder."""
        return import_submitit().helpers.DelayedSubmission(replace(self, attempt=self.attempt + 1))

    def complete_words(self, job: str) -> list[str]:
        """Add the output folder and the rendezvous file.

        The file must not be left over from an earlier attempt. Its name changes with every
        submission and every requeue by submitit or Slurm, and is the same for all processes.
        """
        meeting = f"{self.meeting}_{self.attempt}_{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        return [
            *self.words,
            f"--output_dir={self.output.replace('%j', job)}",
            f"--dist_url=file://{meeting}",
        ]


def describe_place(place: Any) -> dict[str, str]:
    """Return submitit's job environment as torchrun's variables, which override Slurm's."""
    return {
        "RANK": str(place.global_rank),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.num_tasks // place.num_nodes),
    }


class RequeueRequest:
    """Lets the training loop save before submitit requeues the job.

    Submitit's own handler requeues and ends the job at once, which would lose all work since the
    last checkpoint. It acts on SIGUSR2 (or the signal in SUBMITIT_PREEMPT_SIGNAL), which all
    processes get when the time is nearly up or the job is preempted. The training loop saves on
    SIGUSR1 and SIGTERM, and only while it runs. The two share the signals as follows:

    - SIGUSR2 is passed on as SIGUSR1. The loop agrees with the other processes, saves, and exits
      with code 75. Then submitit's handler requeues the job on rank 0, and the other ranks end.
    - SIGUSR1 outside the loop (imports, building, rendezvous) goes straight to submitit's handler:
      everything is already saved.
    - SIGTERM makes the loop save and exit without a requeue, because scancel sends it too. Slurm
      also announces a preemption with SIGTERM, and requeues the job only if it has not ended
      before. A Slurm job therefore waits to be ended.
    """

    def __init__(self, number: signal.Signals) -> None:
        """Take over submitit's signal `number`."""
        self.number = number
        self.handler: Any = signal.getsignal(number)  # submitit has set it before it calls the task
        # With SIGUSR1 the loop handles the signal itself, and every stop counts as this one.
        self.came = number == signal.SIGUSR1
        signal.signal(signal.SIGUSR1, self.handler)
        if number != signal.SIGUSR1:
            signal.signal(number, self._pass_on)

    def finish(self, *, slurm: bool) -> None:
        """Continue after the loop has saved and exited.

        Raises:
            SystemExit: The job is requeued, or, on ranks other than 0, will be.
            RuntimeError: The job was requeued too often; submitit's error, which fails the job.
        """
        if not self.came:
            # A signal that comes now still reaches submitit's handler.
            time.sleep(SIGNAL_DELAY * slurm)
            return
        for number in (signal.SIGUSR1, self.number):
            signal.signal(number, signal.SIG_IGN)
        self.handler(self.number, None)  # does not return on rank 0
        # An error code could make Slurm end rank 0 before it has requeued the job.
        raise SystemExit(0)

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        signal.raise_signal(signal.SIGUSR1)
