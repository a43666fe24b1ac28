"""The command line is an interface: names and defaults are frozen, and those of the Gaudi reference
are all there."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dino.cli.check import CheckConfig
from dino.cli.doctor import DoctorConfig
from dino.cli.flags import FLAGS
from dino.cli.inspect import InspectConfig
from dino.cli.options import flags_of, parse
from dino.cli.pack import PackConfig
from dino.cli.submission import SubmitConfig
from dino.cli.verify import VerifyConfig
from dino.config import as_dict
from dino.errors import OptionError
from dino.evaluation.config import (
    CopyDetectionConfig,
    DavisConfig,
    DrivingConfig,
    FeatureFileConfig,
    KnnConfig,
    LinearConfig,
    LookConfig,
    RetrievalConfig,
    SegmentationMetricsConfig,
)
from dino.training.config import AlignConfig, TrainConfig
from dino.visualization.config import AttentionConfig, AttentionVideoConfig
from dino.weights.config import ExtractConfig, IpuCheckpointConfig
from dino.weights.formats.huggingface import HuggingFaceConfig
from dino.weights.formats.onnx import OnnxConfig
from dino.weights.formats.paddle import PaddleConfig
from dino.weights.formats.timm import TimmConfig

ROOT = Path(__file__).resolve().parents[2]

TRAIN = {
    "--device": None,
    "--lazy_mode": None,
    "--precision": None,
    "--use_fp16": True,
    "--hmp": False,
    "--hmp-bf16": "ops_bf16.txt",
    "--hmp-fp32": "ops_fp32.txt",
    "--hmp-opt-level": "O1",
    "--hmp-verbose": False,
    "--compile": None,
    "--attention": None,
    "--cuda_graph": False,
    "--pipeline": None,
    "--replica": 1,
    "--ga": None,
    "--di": 1,
    "--rts": True,
    "--ipu_per_replica": 8,
    "--output_mode": "all",
    "--async_type": "normal",
    "--rebatched_worker_size": 128,
    "--loss_scale": None,
    "--executable-cache-dir": "./cachedir",
    "--ema_so": None,
    "--gelu_type": "erf",
    "--set_freq": 1,
    "--dist_url": "env://",
    "--local_rank": 0,
    "--hang_timeout": 120.0,
    "--arch": "vit_small",
    "--patch_size": 16,
    "--in_chans": 3,
    "--drop_path_rate": 0.1,
    "--out_dim": 65536,
    "--norm_last_layer": True,
    "--use_bn_in_head": False,
    "--init_from": None,
    "--momentum_teacher": 0.996,
    "--warmup_teacher_temp": 0.04,
    "--teacher_temp": 0.04,
    "--warmup_teacher_temp_epochs": 0,
    "--optimizer": "adamw",
    "--eps": 1e-08,
    "--lr": 0.0005,
    "--warmup_epochs": 10,
    "--min_lr": 1e-06,
    "--weight_decay": 0.04,
    "--weight_decay_end": 0.4,
    "--clip_grad": 3.0,
    "--freeze_last_layer": 1,
    "--global_crops_scale": (0.4, 1.0),
    "--local_crops_number": 8,
    "--local_crops_scale": (0.05, 0.4),
    "--global_crops_size": 224,
    "--local_crops_size": 96,
    "--data_path": None,
    "--batch_size_per_device": 32,
    "--num_workers": 10,
    "--pixel_range": None,
    "--data_limit": None,
    "--mean": None,
    "--std": None,
    "--on_bad_image": "raise",
    "--augment_on": "device",
    "--synthetic_data": False,
    "--output_dir": ".",
    "--epochs": 100,
    "--accumulate_steps": 1,
    "--recompute": "auto",
    "--seed": 0,
    "--saveckp_freq": 20,
    "--save_every_steps": 0,
    "--keep_checkpoints": 0,
    "--eval_knn_every": 0,
    "--own_view_images": 256,
    "--keep_best": None,
    "--draw_pictures": True,
    "--log_to": ("tensorboard",),
    "--preset": None,
    "--hours": None,
    "--dry_run": False,
}
KNN = {
    "--device": None,
    "--lazy_mode": None,
    "--dist_url": "env://",
    "--local_rank": 0,
    "--hang_timeout": 120.0,
    "--arch": "vit_small",
    "--patch_size": 16,
    "--pretrained_weights": None,
    "--checkpoint_key": "teacher",
    "--random_weights": False,
    "--pixel_range": None,
    "--data_path": None,
    "--json": None,
    "--batch_size_per_device": 128,
    "--num_workers": 10,
    "--nb_knn": (10, 20, 100, 200),
    "--temperature": 0.07,
    "--index": "exact",
    "--store_on_device": True,
    "--dump_features": None,
    "--load_features": None,
    "--max_batches": None,
    "--dump_tb_events": None,
}
FROZEN = {
    name: KNN[name]
    for name in (
        *(
            "--device",
            "--lazy_mode",
            "--dist_url",
            "--local_rank",
            "--hang_timeout",
            "--arch",
            "--patch_size",
            "--pretrained_weights",
        ),
        *("--checkpoint_key", "--random_weights", "--pixel_range", "--json"),
    )
}
EVALUATION = FROZEN | {
    name: KNN[name] for name in ("--data_path", "--batch_size_per_device", "--num_workers")
}
LINEAR = EVALUATION | {
    "--n_last_blocks": 4,
    "--avgpool_patchtokens": False,
    "--num_labels": None,
    "--val_freq": 1,
    "--val_first": 1,
    "--scale_lr": True,
    "--evaluate": False,
    "--pretrained_linear": None,
    "--cache_features": False,
    "--lr": 0.001,
    "--data_limit": None,
    "--output_dir": ".",
    "--epochs": 100,
    "--seed": 0,
    "--log_to": ("tensorboard",),
}
FEATURE_FILE = EVALUATION | {"--output": None, "--layers": None, "--patches": False}
COPY_DETECTION = EVALUATION | {
    "--arch": "vit_base",
    "--patch_size": 8,
    "--batch_size_per_device": 16,
    "--store_on_device": True,
    "--imsize": 320,
    "--distractors_path": None,
    "--whitening_path": None,
}
RETRIEVAL = EVALUATION | {
    "--store_on_device": True,
    "--imsize": 224,
    "--dataset": "roxford5k",
    "--multiscale": False,
    "--crop_queries": False,
}
PROPAGATION = EVALUATION | {
    "--batch_size_per_device": 1,
    "--output_dir": ".",
    "--n_last_frames": 7,
    "--size_mask_neighborhood": 12,
    "--topk": 5,
    "--bs": 6,
}
VIDEO_SEGMENTATION = PROPAGATION | {"--evaluate": False}
DRIVING = PROPAGATION | {"--refresh_label_interval": 50, "--path_to_mae_repo": None}
SEGMENTATION_METRICS = {
    "--dist_url": "env://",
    "--local_rank": 0,
    "--hang_timeout": 120.0,
    "--dataset_path": None,
    "--prediction_path": None,
    "--layout": None,
    "--num_classes": 27,
    "--ignore_label": None,
    "--skip_refreshed": False,
    "--csv": None,
    "--pictures": None,
    "--refresh_label_interval": 50,
    "--json": None,
}
CHECK = {
    "--data_path": None,
    "--num_workers": 64,
    "--in_chans": 3,
    "--pixel_range": None,
    "--min_size": 16,
    "--output": None,
    "--json": None,
}
PACK = {
    "--data_path": None,
    "--num_workers": 4,
    "--output_dir": ".",
    "--shard_size": 1000,
    "--shorter_side": None,
    "--json": None,
}
CONVERSION = {
    "--arch": "vit_small",
    "--patch_size": 16,
    "--in_chans": 3,
    "--pretrained_weights": None,
    "--checkpoint_key": "teacher",
    "--random_weights": False,
    "--output": None,
    "--input_size": None,
    "--json": None,
}
PADDLE = CONVERSION | {"--pretrained_linear": None}
INSPECT = {"--pretrained_weights": None, "--json": None}
LOOK = FROZEN | {
    "--data_path": None,
    "--batch_size_per_device": 128,
    "--num_workers": 10,
    "--data_limit": 5000,
    "--shown_images": 8,
    "--duplicate_similarity": 0.975,
    "--output_dir": ".",
}
ATTENTION = FROZEN | {
    "--patch_size": 8,
    "--image_path": None,
    "--image_size": (480, 480),
    "--threshold": None,
    "--output_dir": ".",
}
ATTENTION_VIDEO = FROZEN | {
    "--patch_size": 8,
    "--input_path": None,
    "--output_path": "./",
    "--resize": None,
    "--video_only": False,
    "--fps": 30.0,
    "--video_format": "mp4",
    "--threshold": None,
}
ALIGN = TRAIN | {
    "--arch": "vit_mini",
    "--out_dim": 1024,
    "--local_crops_number": 2,
    "--batch_size_per_device": 1,
    "--epochs": 2,
    "--warmup_epochs": 0,
    "--lr": 0.02,
    "--momentum_teacher": 0.9,
    "--drop_path_rate": 0.0,
    "--clip_grad": 0.0,
    "--eps": 1e-05,
    "--reference": "cpu",
    "--steps": 8,
    "--tolerance": 1e-05,
    "--json": None,
}
VERIFY = {
    "--device": None,
    "--lazy_mode": None,
    "--output_dir": ".",
    "--size": None,
    "--only": None,
    "--patience": 1.0,
}
FILES = {"--weights": None, "--output": None}
EXTRACT = FILES | {"--arch": "vit_small", "--patch_size": 16, "--checkpoint_key": "teacher"}
LOOK_COMMAND = "dino look"  # has no script
TABLE = {  # by script: its options, their frozen defaults, and whose recorded flags it must have
    "main_dino": (TrainConfig, TRAIN, "gaudi/main_dino.py"),
    "eval_knn": (KnnConfig, KNN, "gaudi/eval_knn.py"),
    "eval_linear": (LinearConfig, LINEAR, "gaudi/eval_linear.py"),
    "extract_features": (FeatureFileConfig, FEATURE_FILE, None),
    "eval_copy_detection": (CopyDetectionConfig, COPY_DETECTION, "gaudi/eval_copy_detection.py"),
    "eval_image_retrieval": (RetrievalConfig, RETRIEVAL, "gaudi/eval_image_retrieval.py"),
    "eval_video_segmentation": (
        DavisConfig,
        VIDEO_SEGMENTATION,
        "gaudi/eval_video_segmentation.py",
    ),
    "eval_ipace_segmentation": (DrivingConfig, DRIVING, "driving/eval_ipace_segmentation.py"),
    "compute_segmentation_metrics": (SegmentationMetricsConfig, SEGMENTATION_METRICS, None),
    "dino/data/check": (CheckConfig, CHECK, None),
    "dino/data/pack": (PackConfig, PACK, None),
    "dino/inspect": (InspectConfig, INSPECT, None),
    "dino/interop/paddle": (PaddleConfig, PADDLE, None),
    "dino/interop/timm": (TimmConfig, CONVERSION, None),
    "dino/interop/huggingface": (HuggingFaceConfig, CONVERSION, None),
    "dino/interop/onnx": (OnnxConfig, CONVERSION, None),
    LOOK_COMMAND: (LookConfig, LOOK, None),
    "visualize_attention": (AttentionConfig, ATTENTION, "gaudi/visualize_attention.py"),
    "dino/devices/align": (AlignConfig, ALIGN, None),
    "dino/verify/__main__": (VerifyConfig, VERIFY, None),
    "dino/interop/ipu": (IpuCheckpointConfig, FILES, None),
    "extract_weights": (ExtractConfig, EXTRACT, None),
    "video_generation": (AttentionVideoConfig, ATTENTION_VIDEO, "gaudi/video_generation.py"),
}
ALIASES = {
    "--local_rank": ("--local-rank",),
    "--batch_size_per_device": ("--batch_size_per_gpu",),
    "--store_on_device": ("--use_cuda",),
    "--dataset_path": ("--data_path",),
}
# Flags of the reference whose default is another one here: chosen at start, or with no default that
# could be right.
DEPARTURES = {"--device", "--lazy_mode", "--data_path", "--pretrained_weights", "--num_labels"}
DEPARTURES |= {"--distractors_path", "--whitening_path"}
OWN_DEPARTURES = {AttentionVideoConfig: {"--threshold"}}  # masks are made where they are asked for

COMMAND_TYPES = (*(config for config, _, _ in TABLE.values()), DoctorConfig, SubmitConfig)
COMMANDS = pytest.mark.parametrize(
    ("command", "frozen", "reference"), TABLE.values(), ids=TABLE.keys()
)


def plain_default(entry):
    """The value a flag of the reference has when it is not given."""
    if entry.get("action") == "store_true":
        return False
    default = entry.get("default")  # a flag that must be given has none
    return tuple(default) if isinstance(default, list) else default


def read_entries(facts, reference):
    """The flags of a reference's script; none of a command that no reference has."""
    recorded = json.loads((facts / "reference_flags.json").read_text(encoding="utf-8"))
    return [] if reference is None else recorded[reference]


def usual(known):
    """The value that a flag has where nothing else tells one."""
    return known.reference if known.default is None else known.default


@COMMANDS
def test_the_flags_and_their_defaults_are_frozen(command, frozen, reference):
    assert {known.words[0]: usual(known) for known in flags_of(command)} == frozen


@COMMANDS
def test_parsing_nothing_gives_the_frozen_defaults(command, frozen, reference):
    values, fields = (
        as_dict(parse(command, [])),
        {known.words[0]: known.field for known in flags_of(command)},
    )
    assert set(fields.values()) == set(values)
    for name, default in frozen.items():
        value = values[fields[name]]
        assert value == (list(default) if isinstance(default, tuple) else default), name


@COMMANDS
def test_other_spellings_are_frozen(command, frozen, reference):
    others = {name: words for name, words in ALIASES.items() if name in frozen}
    assert {k.words[0]: k.words[1:] for k in flags_of(command) if k.words[1:]} == others


@COMMANDS
def test_every_flag_of_the_reference_is_here_with_its_default(
    command, frozen, reference, shared_facts
):
    entries = read_entries(shared_facts, reference)
    ours = {word: known for known in flags_of(command) for word in known.words}
    assert {word for entry in entries for word in entry["flags"]} <= ours.keys()
    differing = {
        entry["flags"][0]
        for entry in entries
        if usual(ours[entry["flags"][0]]) != plain_default(entry)
    }
    assert differing == (DEPARTURES | OWN_DEPARTURES.get(command, set())) & {
        entry["flags"][0] for entry in entries
    }
    departed = {word: usual(ours[word]) for word in differing}
    assert departed == dict.fromkeys(differing)


@COMMANDS
def test_every_choice_of_the_reference_is_taken(command, frozen, reference, shared_facts):
    entries = read_entries(shared_facts, reference)
    ours = {word: known for known in flags_of(command) for word in known.words}
    for entry in entries:
        for choice in entry.get("choices", []):
            assert ours[entry["flags"][0]].convert(choice) == choice


def test_each_setting_of_a_command_is_declared_once_as_a_flag_and_no_other():
    declared = Counter()
    for path in (ROOT / "dino" / "cli" / "flags").glob("[a-z]*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        table = next(
            node.value
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and node.target.id == "FLAGS"
        )
        declared += Counter(key.value for key in table.keys)
    assert max(declared.values()) == 1
    assert (
        {known.field for command in COMMAND_TYPES for known in flags_of(command)}
        == FLAGS.keys()
        == declared.keys()
    )


@COMMANDS
def test_no_two_flags_of_a_command_share_a_word(command, frozen, reference):
    words = Counter(word for known in flags_of(command) for word in known.words)
    assert max(words.values()) == 1


@COMMANDS
def test_every_flag_says_what_it_means(command, frozen, reference):
    assert all(known.spec.help.strip() for known in flags_of(command))


@pytest.mark.parametrize("command", COMMAND_TYPES)
def test_every_number_has_a_bound_that_its_default_keeps(command):
    numbers = {
        "int",
        "float",
        "int | None",
        "float | None",
        "tuple[int, ...]",
        "tuple[int, ...] | None",
    }
    for known in flags_of(command):
        if (
            getattr(known.annotation, "__name__", str(known.annotation)) in numbers
            or str(known.annotation) in numbers
        ):
            assert known.field == "local_rank" or known.limits.least is not None, known.field
            assert known.convert(usual(known)) == usual(known)


@pytest.mark.parametrize(
    ("flag", "value", "bounds"),
    [
        *[
            (f"--{name}", "0", ">= 1")
            for name in ("epochs", "patch_size", "in_chans", "batch_size_per_device")
        ],
        *[("--seed", "-1", ">= 0"), ("--out_dim", "1", ">= 2"), ("--num_workers", "-1", ">= 0")],
        *[
            (f"--{name}", value, ">= 0")
            for name in ("lr", "clip_grad", "weight_decay")
            for value in ("-0.1", "nan")
        ],
        *[("--drop_path_rate", value, "between 0 and 1") for value in ("1.5", "-0.5", "nan")],
        *[
            ("--teacher_temp", value, "between 0.0001 and 100")
            for value in ("0.0", "-0.04", "inf", "nan")
        ],
    ],
)
def test_a_number_out_of_bounds_is_refused_by_flag_value_and_bounds(flag, value, bounds, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{flag[2:]}: {value if value[-1].isdigit() else '.' + value}")
    for words in ([f"{flag}={value}"], ["--config", str(recipe)]):
        with pytest.raises(OptionError, match=rf"^{flag} must be {bounds} \(got {value}\)$"):
            parse(TrainConfig, words)


@pytest.mark.parametrize("script", TABLE)
def test_help_does_not_import_torch(script):
    start = f"runpy.run_path({f'{script}.py'!r}, run_name='__main__')"
    if script == LOOK_COMMAND:
        start = "runpy.run_module('dino.cli', run_name='__main__')"
    program = (
        "import runpy, sys\n"
        f"sys.argv = {[*script.split(), '--help']}\n"
        "try:\n"
        f"    {start}\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'habana_frameworks', 'poptorch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout
