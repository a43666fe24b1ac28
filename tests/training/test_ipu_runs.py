"""Whole commands on the stand-in for IPUs: the CPU's numbers, interruption, several processes,
recipes, scripts."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dino.cli.options import parse
from dino.config import as_dict
from dino.training.config import TrainConfig
from tests.running import (
    HALF_ON_CPU,
    TINY,
    Job,
    Result,
    losses_of,
    make_images,
    on_fake_ipu,
    on_simulated_card,
    run_alone,
    state_of,
    train,
    train_pair,
)

ROOT = Path(__file__).resolve().parents[2]
EXACT = ("--drop_path_rate", 0, "--eps", 1e-5, "--clip_grad", 0)
IPU = (
    "--device",
    "ipu",
    "--ga",
    2,
    "--replica",
    2,
    "--loss_scale",
    128,
    "--batch_size_per_device",
    1,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="module")
def on_cpu(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run on the CPU, four images an update, as IPU has them."""
    folder = tmp_path_factory.mktemp("cpu")
    assert train(folder, "--data_path", images, "--output_dir", folder / "run", *EXACT).code == 0
    return folder / "run"


def assert_near(one: dict, other: dict, tolerance: float) -> None:
    for network in ("student", "teacher"):
        assert one[network].keys() == other[network].keys()
        for name, tensor in one[network].items():
            assert torch.allclose(tensor, other[network][name], atol=tolerance), name
    for place, state in other["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.allclose(one["optimizer"]["state"][place][key], value, atol=tolerance), (
                place,
                key,
            )
    assert torch.allclose(one["dino_loss"]["center"], other["dino_loss"]["center"], atol=tolerance)


def test_training_gives_the_cpus_numbers_and_a_checkpoint_like_its(
    images: Path, on_cpu: Path, tmp_path: Path
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", *EXACT, *IPU)
    words += ("--executable-cache-dir", tmp_path / "cache")
    result = train(tmp_path, *words, prepare=on_fake_ipu)
    assert result.code == 0, result.text
    assert "device: ipu, float32, 2 x 1 IPU (as asked)" in result.text
    assert (
        "global batch 4 images per update: peak learning rate 7.8125e-06 = --lr 0.0005 * 4 / 256"
        in result.text
    )
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(on_cpu), rel=1e-5)
    ours, cpus = state_of(tmp_path / "run"), state_of(on_cpu)
    assert ours.keys() == cpus.keys()
    assert_near(ours, cpus, 1e-5)


def test_batches_in_pieces_are_the_same_batches(images: Path, on_cpu: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", *EXACT, *IPU)
    result = train(
        tmp_path,
        *words,
        "--async_type",
        "rebatch",
        "--rebatched_worker_size",
        3,
        prepare=on_fake_ipu,
    )
    assert result.code == 0, result.text
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(on_cpu), rel=1e-5)


def test_an_interrupted_run_continues(images: Path, tmp_path: Path) -> None:
    words = ["--data_path", str(images), *map(str, (*EXACT, *IPU))]
    whole = train(tmp_path, *words, "--output_dir", tmp_path / "whole", prepare=on_fake_ipu)
    assert whole.code == 0, whole.text
    stopped = ["--output_dir", str(tmp_path / "stopped"), "--save_every_steps", "7"]
    job = Job(tmp_path, [*TINY, *words, *stopped], on_fake_ipu)
    while "10/20" not in job.text() and job.process.is_alive():
        pass
    job.kill()
    job.wait()
    again = train(tmp_path, *words, *stopped, prepare=on_fake_ipu)
    assert again.code == 0 and "at iteration" in again.text, again.text
    assert_near(state_of(tmp_path / "stopped"), state_of(tmp_path / "whole"), 1e-6)
    assert losses_of(tmp_path / "stopped") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-6)


def test_a_checkpoint_goes_from_ipu_to_cpu_and_back(images: Path, tmp_path: Path) -> None:
    for name, devices in {"there": ("ipu", "cpu", "ipu"), "here": ("cpu", "cpu", "cpu")}.items():
        for epochs, device in enumerate(devices, start=1):
            words = ("--data_path", images, "--output_dir", tmp_path / name, "--epochs", epochs)
            more = IPU if device == "ipu" else ()
            result = train(tmp_path, *words, *EXACT, *more, prepare=on_fake_ipu if more else None)
            assert result.code == 0, result.text
    assert losses_of(tmp_path / "there") == pytest.approx(losses_of(tmp_path / "here"), rel=1e-5)


def be_instance(rank: int) -> None:
    """As poprun starts one of two processes with a copy of the model each."""
    os.environ["POPDIST_NUM_TOTAL_REPLICAS"], os.environ["POPDIST_NUM_LOCAL_REPLICAS"] = "2", "1"
    os.environ["POPDIST_REPLICA_INDEX_OFFSET"] = str(rank)
    on_fake_ipu()


def test_two_processes_of_poprun_equal_one(images: Path, on_cpu: Path, tmp_path: Path) -> None:
    words = (
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "run",
        *EXACT,
        "--device",
        "ipu",
        "--ga",
        2,
    )
    instances = tuple(functools.partial(be_instance, rank) for rank in range(2))
    results = train_pair(tmp_path, *words, "--batch_size_per_device", 1, prepare=instances)
    assert [result.code for result in results] == [0, 0], results
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(on_cpu), rel=1e-5)
    assert_near(state_of(tmp_path / "run"), state_of(on_cpu), 1e-5)


@pytest.mark.skipif(
    not HALF_ON_CPU, reason="this torch has no float16 on the CPU, and so has the stand-in"
)
def test_half_precision_trains_and_its_weights_are_scored(
    shared_data: Path, tmp_path: Path
) -> None:
    words = (
        "--data_path",
        shared_data / "cifar10" / "train",
        "--data_limit",
        16,
        "--output_dir",
        tmp_path / "run",
    )
    result = train(
        tmp_path, *words, *IPU, "--precision", "float16", "--epochs", 1, prepare=on_fake_ipu
    )
    assert result.code == 0, result.text
    scored = subprocess.run(
        ["sh", ROOT / "script" / "eval_knn.sh", tmp_path / "run" / "checkpoint.pth", "--help"],
        env=os.environ | {"PYTHON": "echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "eval_knn.py --pretrained_weights" in scored.stdout
    data = tmp_path / "data"
    for split in ("train", "val"):
        for label in ("a", "b"):
            make_images(data / split / label, 4, seed=ord(label))
    words = (
        "--data_path",
        data,
        "--pretrained_weights",
        tmp_path / "run" / "checkpoint.pth",
        "--nb_knn",
        2,
    )
    lines = []
    for device in ("cpu", "ipu"):
        more = ("--batch_size_per_device", 4, "--num_workers", 0, "--device", device)
        result = run_alone(
            tmp_path, "eval_knn", *words, *more, prepare=on_fake_ipu if device == "ipu" else None
        )
        assert result.code == 0, result.text
        lines.append([line for line in result.text.splitlines() if "classifier" in line])
    assert lines[0] == lines[1] and len(lines[0]) == 1


@pytest.mark.parametrize("device", ["cpu", "hpu", "ipu"])
def test_synthetic_data_needs_no_images(tmp_path: Path, device: str) -> None:
    from tests import hpu_simulator

    if device == "hpu" and hpu_simulator.why_unavailable():
        pytest.skip("no simulated hpu")
    words = (
        "--synthetic_data",
        "--data_limit",
        12,
        "--output_dir",
        tmp_path / "run",
        "--device",
        device,
    )
    result = train(
        tmp_path, *words, prepare={"hpu": on_simulated_card, "ipu": on_fake_ipu}.get(device)
    )
    assert result.code == 0, result.text
    assert len(losses_of(tmp_path / "run")) == 2


def refusals() -> list[tuple[tuple, list[str]]]:
    """(words, what the line must hold)."""
    return [
        (
            ("--device", "ipu", "--pipeline", 3, 0, "--ga", 4),
            ["--ga must be >= 11", "--pipeline 3 0", "(got 4)"],
        ),
        (
            ("--device", "ipu", "--async_type", "rebatch"),
            ["--rebatched_worker_size 128", "4 images"],
        ),
        (
            ("--device", "ipu", "--use_bn_in_head", "true", "--optimizer", "lars"),
            ["supports only --optimizer adamw"],
        ),
        (("--ga", 2), ["--ga is for --device ipu only, and this is cpu"]),
        (
            ("--precision", "masterweight"),
            ["--precision masterweight is for --device ipu only", "bf16"],
        ),
        (("--dry_run", "--device", "ipu"), ["--dry_run", "not supported on --device ipu"]),
        (("--synthetic_data",), ["--synthetic_data and --data_path contradict each other"]),
    ]


@pytest.mark.parametrize(("words", "wanted"), refusals(), ids=str)
def test_wrong_input_ends_with_2_and_one_line(
    images: Path, tmp_path: Path, words: tuple, wanted: list[str]
) -> None:
    result: Result = train(
        tmp_path,
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "run",
        *words,
        prepare=on_fake_ipu,
    )
    assert result.code == 2, result.text
    lines = [line for line in result.text.splitlines() if "Error: " in line]
    assert len(lines) == 1 and all(part in lines[0] for part in wanted), result.text


def test_synthetic_images_can_be_too_few_or_asked_to_be_scored(tmp_path: Path) -> None:
    words = ("--synthetic_data", "--output_dir", tmp_path / "run")
    few = train(tmp_path, *words, "--data_limit", 3, *IPU, prepare=on_fake_ipu)
    assert few.code == 2 and "holds 3 images, less than one global batch of 4" in few.text, few.text
    scored = train(tmp_path, *words, "--eval_knn_every", 1)
    assert (
        scored.code == 2
        and "--eval_knn_every scores images, and --synthetic_data reads none" in scored.text
    )


# published: peak rate, images an update and process, copies as published, least accumulation
RECIPES = {
    "vit_small_pod16": (2e-3, 1024, 4, 23),
    "vit_small_pod16_half": (2e-3, 1024, 4, 23),
    "vit_small_pod64": (2e-3, 4096, 16, 23),
    "vit_base_pod16": (5e-4, 256, 2, 47),
    "vit_base_pod64": (2e-3, 12800, 8, 47),
    "vit_base_pod256": (2e-3, 4096, 32, 47),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_give_the_published_batch_and_rate(name: str) -> None:
    from dino.devices.ipu.pipeline import place_blocks
    from dino.models.registry import VITS, build_backbone

    peak, batch, copies, least = RECIPES[name]
    options = parse(TrainConfig, ["--config", f"configs/ipu/{name}.yaml"])
    config = options.compiled
    assert options.device.device == "ipu" and config.ga is not None
    assert options.data.batch_size_per_device * config.ga * copies == batch
    assert options.optim.lr * batch / 256 == pytest.approx(peak)
    backbone = build_backbone(options.backbone.arch)
    names = [
        *(f"backbone.{n}" for n, _ in backbone.named_parameters()),
        "head.mlp.0.bias",
        "head.last_layer.weight_v",
    ]
    placement = place_blocks(config.pipeline, VITS[options.backbone.arch].depth)
    assert placement.stages(names) == least <= config.ga
    instances = 32 if "256" in name else 1
    assert config.async_type != "rebatch" or config.rebatched_worker_size <= batch // instances


COMMON = {  # every other published value; the peak rate and the batch are above
    **{
        "optimizer": "adamw",
        "drop_path_rate": 0.1,
        "momentum_teacher": 0.996,
        "warmup_teacher_temp": 0.04,
    },
    **{
        "freeze_last_layer": 1,
        "out_dim": 65536,
        "patch_size": 16,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
    },
    **{
        "clip_grad": 0,
        "use_bn_in_head": False,
        "di": 1,
        "warmup_epochs": 10,
        "seed": 0,
        "eps": 1e-5,
    },
}
BASE = COMMON | {
    **{
        "arch": "vit_base",
        "precision": "float16",
        "gelu_type": "erf",
        "batch_size_per_device": 2,
        "replica": 1,
    },
    **{
        "pipeline": [1, 2, 2, 2, 2, 2, 1, 0],
        "ipu_per_replica": 8,
        "rts": True,
        "output_mode": "all",
        "epochs": 100,
    },
    **{
        "min_lr": 1e-6,
        "norm_last_layer": True,
        "teacher_temp": 0.04,
        "warmup_teacher_temp_epochs": 0,
    },
    **{"local_crops_number": 8, "local_crops_scale": [0.05, 0.4], "global_crops_scale": [0.4, 1.0]},
    **{
        "async_type": "rebatch",
        "num_workers": 32,
        "saveckp_freq": 1,
        "set_freq": 1,
        "loss_scale": 128,
    },
    "output_dir": "checkpoint_dino_vit_base",
}
SMALL = COMMON | {
    **{
        "arch": "vit_small",
        "precision": "float32",
        "gelu_type": "erf",
        "batch_size_per_device": 2,
        "replica": 4,
    },
    **{
        "pipeline": [4, 4, 4, 0],
        "ipu_per_replica": 4,
        "rts": True,
        "output_mode": "all",
        "epochs": 800,
        "ga": 128,
    },
    **{
        "min_lr": 1e-5,
        "norm_last_layer": False,
        "teacher_temp": 0.07,
        "warmup_teacher_temp_epochs": 30,
    },
    **{
        "local_crops_number": 10,
        "local_crops_scale": [0.05, 0.25],
        "global_crops_scale": [0.25, 1.0],
    },
    **{
        "async_type": "async",
        "num_workers": 32,
        "saveckp_freq": 2,
        "set_freq": 1,
        "loss_scale": None,
    },
    "output_dir": "checkpoint_dino_vit_small",
}
HALF = {
    **{
        "precision": "float16",
        "gelu_type": "tanh",
        "batch_size_per_device": 4,
        "ga": 64,
        "ipu_per_replica": 8,
    },
    **{
        "output_mode": "final",
        "epochs": 100,
        "teacher_temp": 0.04,
        "warmup_teacher_temp_epochs": 0,
    },
    **{
        "saveckp_freq": 5,
        "set_freq": 10,
        "loss_scale": 128,
        "output_dir": "checkpoint_dino_vit_small_half",
    },
}
TABLE = {
    "vit_small_pod16": SMALL,
    "vit_small_pod16_half": SMALL | HALF,
    "vit_small_pod64": SMALL | {"replica": 1, "rts": False, "set_freq": 10},
    "vit_base_pod16": BASE
    | {"ga": 64, "replica": 2, "async_type": "async", "num_workers": 16, "saveckp_freq": 2},
    "vit_base_pod64": BASE | {"ga": 400, "batch_size_per_device": 4, "rebatched_worker_size": 800},
    "vit_base_pod256": BASE | {"ga": 64, "rebatched_worker_size": 128},  # these two as they can run
}


@pytest.mark.parametrize("name", TABLE)
def test_recipes_have_the_published_values(name: str) -> None:
    options = as_dict(parse(TrainConfig, ["--config", f"configs/ipu/{name}.yaml"]))
    assert {key: options[key] for key in TABLE[name]} == TABLE[name]


SCRIPTS = {
    "vit_small_pod16": (1, 4, 4),
    "vit_base_pod16": (1, 2, 8),
    "vit_base_pod64": (1, 8, 8),
    "vit_base_pod256": (32, 32, 8),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_training_scripts_start_poprun(name: str, tmp_path: Path) -> None:
    poprun = tmp_path / "poprun"
    poprun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    poprun.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PARTITION": "pod"}
    words = ["sh", ROOT / "training_scripts" / f"{name}.sh", "/data/train", "--epochs", "3"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    instances, replicas, ipus = SCRIPTS[name]
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        f"--num-instances={instances}",
        f"--num-replicas={replicas}",
        f"--ipus-per-replica={ipus}",
        "--vipu-partition=pod",
    ]
    forwarded = next(line for line in lines if line.startswith("--mpi-local-args="))
    assert {"MASTER_ADDR", "MASTER_PORT", "PYTHONPATH"} <= set(
        forwarded.removeprefix("--mpi-local-args=").split()
    )
    command = (
        f"python3 main_dino.py --config configs/ipu/{name}.yaml --data_path /data/train --epochs 3"
    )
    assert lines[-8:] == command.split()


def test_scripts_without_the_sdk_say_so() -> None:
    words = ["sh", ROOT / "training_scripts" / "vit_base_pod16.sh"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2 and "poprun is not found; enable the Poplar SDK first" in done.stderr
    )
    done = subprocess.run(["sh", ROOT / "make_ema.sh"], capture_output=True, text=True, check=True)
    assert "nothing needs compiling" in done.stdout


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (
            ["vit_model.pth"],
            "--pretrained_weights vit_model.pth --data_path data/imagenet1k --nb_knn 10 20",
        ),
        (
            ["vit_base", "out/checkpoint.pth", "--data_path", "/d"],
            "--arch vit_base --pretrained_weights out/checkpoint.pth --nb_knn 10 20 --data_path /d",
        ),
    ],
)
def test_the_knn_script_starts_the_score(words: list[str], command: str) -> None:
    environment = os.environ | {"PYTHON": "echo"}
    script = ["sh", ROOT / "script" / "eval_knn.sh"]
    done = subprocess.run(
        [*script, *words], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("eval_knn.py ")[1].strip() == command
    assert subprocess.run(script, capture_output=True, check=False).returncode == 2


def test_the_published_codes_commands_work_in_the_folder_of_scripts(tmp_path: Path) -> None:
    """`cd script; python extract_weights.py ...; sh eval_knn.sh`, with data/ next to script/."""
    (tmp_path / "data" / "imagenet1k").mkdir(parents=True)
    shutil.copytree(ROOT / "script", tmp_path / "script", symlinks=True)
    here = tmp_path / "script"
    (here / "vit_model.pth").touch()
    words = {"cwd": here, "env": os.environ | {"PYTHON": "echo"}, "text": True}
    scored = subprocess.run(["sh", "eval_knn.sh"], capture_output=True, check=True, **words).stdout
    assert scored.split() == [
        *("./../eval_knn.py", "--pretrained_weights", "vit_model.pth"),
        *("--data_path", "./../data/imagenet1k", "--nb_knn", "10", "20"),
    ]
    assert (ROOT / "script" / "extract_weights.py").samefile(ROOT / "extract_weights.py")
