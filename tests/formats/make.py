"""Make the frozen files anew: `python -m tests.formats.make FOLDER` runs every command once, on
tiny data.

The network is a full vit_mini with the full head, of which few units are alive: the others start at
zero, where every gradient of theirs is zero too, so that files are large on disk and small once
they are compressed.
"""

from __future__ import annotations

import json
import lzma
import os
import pickle
import platform
import re
import runpy
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.label_folders import make_davis, make_predictions, make_runs
from tests.running import SERVER, make_images, make_labelled

FROZEN = Path(__file__).resolve().parent / "frozen"
MACHINE = "machine.json"  # versions and processor that the numbers were computed with
TAGS = "tags.json"  # TensorBoard tags and steps, by folder
PRINTED = "printed.txt"  # what the last command printed
FILES = "files.txt"  # every file that the commands wrote

WIDTH, BLOCKS, HIDDEN, PATCH, SIZE, CHANNELS = 96, 3, 192, 4, 32, 3  # vit_mini
HEAD_HIDDEN, BOTTLENECK, PROTOTYPES = 2048, 256, 64
# of each head's queries, keys and values, of a block's hidden units, and of the projection head's
# widths
ALIVE = 4

QUIET = ("--device", "cpu", "--num_workers", "0")
WEIGHTS = ("--pretrained_weights", "run/teacher_backbone.pth")
UNTRAINED = (
    "--random_weights",
    "--arch",
    "vit_mini",
    "--patch_size",
    "32",
)  # frames are large, so patches are too


@dataclass(frozen=True)
class Command:
    """A command line, and the code it ends with."""

    module: str
    words: tuple[str, ...]
    code: int = 0


TRAIN = Command(
    "main_dino",
    (
        *QUIET,
        *("--data_path", "images/train", "--output_dir", "run", "--init_from", "initial.pth"),
        *("--arch", "vit_mini", "--patch_size", str(PATCH), "--out_dim", str(PROTOTYPES)),
        *(
            "--global_crops_size",
            str(SIZE),
            "--local_crops_size",
            "16",
            "--local_crops_number",
            "2",
        ),
        *("--batch_size_per_device", "4", "--epochs", "3", "--warmup_epochs", "0"),
        # A small eps would make a whole step of the rounding where a gradient is zero but for it
        # (the keys' bias).
        *("--lr", "0.1", "--min_lr", "1e-3", "--eps", "1e-5", "--momentum_teacher", "0.9"),
        # 3 iterations an epoch; saved at 3, 4, 6, 8 and 9, so that checkpoint_previous.pth is
        # inside an epoch.
        *("--save_every_steps", "4", "--saveckp_freq", "2", "--eval_knn_every", "2"),
    ),
)
LINEAR = Command(
    "eval_linear",
    (
        *(
            *QUIET,
            *WEIGHTS,
            "--data_path",
            "images",
            "--output_dir",
            "linear",
            "--json",
            "json/linear.json",
        ),
        *("--n_last_blocks", "2", "--batch_size_per_device", "4", "--lr", "0.1", "--epochs", "1"),
    ),
)
LINEAR_CONTINUED = Command(
    LINEAR.module, (*LINEAR.words, "--epochs", "2", "--output_dir", "linear_continued")
)
LINEAR_SCORED = Command(
    LINEAR.module, (*LINEAR.words, "--evaluate", "--json", "json/linear_evaluate.json")
)
SCORE_KNN = ("--nb_knn", "2", "5")
KNN = Command(
    "eval_knn",
    (
        *(*QUIET, *WEIGHTS, "--data_path", "images", *SCORE_KNN, "--json", "json/knn.json"),
        *("--dump_features", "knn", "--dump_tb_events", "knn_events"),
    ),
)
KNN_LOADED = Command(
    "eval_knn",
    ("--device", "cpu", "--load_features", "knn", *SCORE_KNN, "--json", "json/knn_loaded.json"),
)


def _extract(output: str, *more: str) -> Command:
    return Command(
        "extract_features",
        (*QUIET, *WEIGHTS, "--data_path", "images/val", "--output", f"features/{output}", *more),
    )


EXTRACT_FEATURES = _extract("val.npz", "--json", "json/extract_features.json")
EXTRACT_WEIGHTS = Command(
    "extract_weights", ("--weights", "run/checkpoint.pth", "--output", "vit_model.pth")
)
INSPECT = Command("dino.inspect", ("run/checkpoint.pth", "--json", "json/inspect.json"))
TO_IPU = Command("dino.interop.ipu", ("run/checkpoint.pth", "ipu/checkpoint.pth"))
FROM_IPU = Command("dino.interop.ipu", ("ipu/checkpoint.pth", "ipu/back.pth"))
COMMANDS = (
    TRAIN,
    LINEAR,
    LINEAR_SCORED,
    LINEAR_CONTINUED,
    KNN,
    KNN_LOADED,
    EXTRACT_FEATURES,
    _extract("val.safetensors"),
    _extract("val.csv"),
    _extract("val.parquet"),
    _extract(
        *("layers.npz", "--data_path", "one.txt", "--layers", "1", "3", "--patches"),
        *("--json", "json/extract_features_layers.json"),
    ),
    Command(
        "eval_copy_detection",
        (
            *(
                *QUIET,
                *WEIGHTS,
                "--data_path",
                "copydays",
                "--imsize",
                "32",
                "--json",
                "json/copy_detection.json",
            ),
            *("--distractors_path", "images/val", "--whitening_path", "images/val"),
        ),
    ),
    Command(
        "eval_image_retrieval",
        (
            *QUIET,
            *WEIGHTS,
            "--data_path",
            "landmarks",
            "--imsize",
            "32",
            "--json",
            "json/image_retrieval.json",
        ),
    ),
    Command(
        "eval_video_segmentation",
        (
            *(
                *QUIET,
                *UNTRAINED,
                "--data_path",
                "davis",
                "--output_dir",
                "davis_found",
                "--evaluate",
            ),
            *("--json", "json/video_segmentation.json"),
        ),
    ),
    Command(
        "eval_ipace_segmentation",
        (
            *(*QUIET, *UNTRAINED, "--data_path", "driving", "--output_dir", "driving_found"),
            *("--refresh_label_interval", "2", "--json", "json/ipace_segmentation.json"),
        ),
    ),
    Command(
        "compute_segmentation_metrics",
        (
            *("--dataset_path", "davis", "--prediction_path", "davis_predicted"),
            *("--json", "json/segmentation_metrics_davis.json", "--csv", "tables/davis.csv"),
        ),
    ),
    Command(
        "compute_segmentation_metrics",
        (
            *(
                "--dataset_path",
                "driving",
                "--prediction_path",
                "driving_predicted",
                "--num_classes",
                "4",
            ),
            *("--json", "json/segmentation_metrics_driving.json", "--csv", "tables/driving.csv"),
        ),
    ),
    Command(
        "visualize_attention",
        (
            *(
                "--device",
                "cpu",
                *WEIGHTS,
                "--image_path",
                "images/val/ant",
                "--image_size",
                str(SIZE),
                str(SIZE),
            ),
            *("--output_dir", "attention", "--json", "json/visualize_attention.json"),
        ),
    ),
    Command(
        "video_generation",
        (
            *(
                "--device",
                "cpu",
                *WEIGHTS,
                "--input_path",
                "images/val/ant",
                "--resize",
                str(SIZE),
                str(SIZE),
            ),
            *("--output_path", "video", "--json", "json/video_generation.json"),
        ),
    ),
    EXTRACT_WEIGHTS,
    INSPECT,
    Command(
        "dino.inspect", ("run/teacher_backbone.pth", "--json", "json/inspect_teacher_backbone.json")
    ),
    Command(
        "dino.data.check",
        (
            "doubtful",
            "--num_workers",
            "0",
            "--output",
            "clean.txt",
            "--json",
            "json/data_check.json",
        ),
        code=1,
    ),
    Command(
        "dino.data.pack",
        (
            "images/train",
            "packed",
            "--shard_size",
            "8",
            "--num_workers",
            "0",
            "--json",
            "json/data_pack.json",
        ),
    ),
    Command(
        "dino.devices.align",
        (
            *("--device", "cpu", "--steps", "2", "--out_dim", "16", "--patch_size", "8"),
            *(
                "--global_crops_size",
                "16",
                "--local_crops_size",
                "8",
                "--json",
                "json/devices_align.json",
            ),
        ),
    ),
    TO_IPU,
    *(
        Command(
            f"dino.interop.{name}",
            (*WEIGHTS, "--output", output, "--json", f"json/interop_{name}.json"),
        )
        for name, output in (
            ("timm", "out.safetensors"),
            ("huggingface", "hf"),
            ("paddle", "out.pdparams"),
        )
    ),
    Command("dino.doctor", ("--device", "ipu", "--json", "json/doctor.json"), code=1),
)

KEPT = (  # what is frozen, below the working folder
    *(
        "run/checkpoint.pth",
        "run/checkpoint_previous.pth",
        "run/teacher_backbone.pth",
        "run/log.txt",
    ),
    *("run/recipe.yaml", "linear/checkpoint.pth.tar", "linear/log.txt", "linear/recipe.yaml"),
    *("linear_continued/checkpoint.pth.tar", "linear_continued/log.txt", "ipu/checkpoint.pth"),
    *(f"knn/{split}{part}.pth" for split in ("train", "test") for part in ("feat", "labels")),
    *("features/val.npz", "features/layers.npz", "features/val.safetensors", "features/val.csv"),
    *(
        "features/val.parquet",
        "tables/davis.csv",
        "tables/driving.csv",
        "packed/train.json",
        "clean.txt",
    ),
    *("hf/config.json", "hf/preprocessor_config.json", TAGS, FILES, MACHINE),
)
COMPRESSED = tuple(
    name for name in KEPT if name.startswith(("run/", "ipu/")) and name.endswith(".pth")
)
ENDING = ".xz"  # of what is compressed
EVENTS = ("run/tensorboard", "linear/tensorboard", "knn_events")


def make_all(folder: Path) -> None:
    """Draw the data and run every command in a folder, which then holds all that they write."""
    prepare(folder)
    drawn = set(list_files(folder))
    for command in COMMANDS:
        if command is LINEAR_CONTINUED:
            shutil.copytree(folder / "linear", folder / "linear_continued")
        run(folder, command)
    written = [name for name in list_files(folder) if name not in drawn]
    (folder / FILES).write_text("".join(f"{name}\n" for name in written))
    (folder / TAGS).write_text(
        json.dumps({name: read_tags(folder / name) for name in EVENTS}) + "\n"
    )
    (folder / MACHINE).write_text(json.dumps(describe_machine()) + "\n")


def prepare(folder: Path) -> None:
    """Draw images, label maps and first weights, and make the folders that no command makes."""
    for name in ("json", "features", "tables", "ipu"):
        (folder / name).mkdir(parents=True)
    draw_data(folder)
    draw_weights(folder / "initial.pth")


def draw_data(folder: Path) -> None:
    """Write noise and blocks in the layout that each command reads."""
    make_labelled(folder / "images", {"train": 6, "val": 3})
    (folder / "one.txt").write_text("images/val/ant/000.png\n")
    make_images(folder / "copydays" / "original", 3)
    make_images(folder / "copydays" / "strong", 3, seed=1)
    make_images(folder / "copydays" / "jpegqual" / "3", 3, seed=2)
    draw_landmarks(folder / "landmarks" / "roxford5k")
    clips = {"cow": draw_clip(5), "dog": draw_clip(4)}
    make_davis(folder / "davis", clips)
    make_predictions(
        folder / "davis_predicted",
        {name: [frames[0], *frames[:-1]] for name, frames in clips.items()},
    )
    make_runs(folder / "driving", {"monday": draw_clip(3)})
    make_predictions(folder / "driving_predicted", {"monday": draw_clip(4)[1:]})
    make_images(folder / "doubtful", 3)
    make_images(folder / "doubtful" / "small", 1, size=8)
    shutil.copy(folder / "doubtful" / "000.png", folder / "doubtful" / "again.png")
    (folder / "doubtful" / "cut.png").write_bytes(
        (folder / "doubtful" / "001.png").read_bytes()[:300]
    )


def draw_clip(frames: int) -> list[np.ndarray]:
    """Label maps (36, 64) with two blocks that move."""
    found = np.zeros((frames, 36, 64), dtype=np.uint8)
    for number, labels in enumerate(found):
        labels[4:16, 4 + 3 * number : 24 + 3 * number] = 1
        labels[20:32, 40 - 4 * number : 56 - 4 * number] = 2
    return list(found)


def draw_landmarks(folder: Path) -> None:
    """Four database images and one query, of which two are right, one easily and one not."""
    for path in make_images(folder / "jpg", 5, size=40).glob("*.png"):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".jpg"))
        path.unlink()
    truth = {"easy": [0], "hard": [1], "junk": [2], "bbx": [0.0, 0.0, 30.0, 30.0]}
    content = {"imlist": ["000", "001", "002", "003"], "qimlist": ["004"], "gnd": [truth]}
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))


def draw_weights(path: Path) -> None:
    """Write what training starts from: the original's names, few units alive, every number a
    multiple of 2 ** -10."""
    import torch

    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], *alive: object, scale: float = 0.1) -> torch.Tensor:
        numbers = np.round(scale * rng.uniform(-1.7, 1.7, shape) * 1024).astype(np.float32) / 1024
        found = np.zeros(shape, dtype=np.float32)  # and no -0, which would have to be stored
        found[alive] = numbers[alive]
        return torch.from_numpy(found)

    weights: dict[str, torch.Tensor] = {}
    for name, shape, alive, scale in list_weights():
        if re.search(r"norm\d?\.weight|weight_g", name):
            weights[name] = torch.ones(shape)
        elif name.endswith(".bias"):
            weights[name] = torch.zeros(shape)
        else:
            weights[name] = draw(shape, *alive, scale=scale)
    torch.save({"teacher": weights}, path)


def list_weights() -> Iterator[tuple[str, tuple[int, ...], tuple[Any, ...], float]]:
    """Yield name, shape, indices alive and standard deviation of every tensor of vit_mini with the
    head."""
    few, whole, tokens = slice(ALIVE), slice(None), (SIZE // PATCH) ** 2 + 1
    yield "backbone.cls_token", (1, 1, WIDTH), (whole,), 0.3
    yield "backbone.pos_embed", (1, tokens, WIDTH), (whole,), 0.3
    yield "backbone.patch_embed.proj.weight", (WIDTH, CHANNELS, PATCH, PATCH), (whole,), 0.1
    yield "backbone.patch_embed.proj.bias", (WIDTH,), (whole,), 0
    for block in (f"backbone.blocks.{number}." for number in range(BLOCKS)):
        yield from ((f"{block}norm1.{part}", (WIDTH,), (whole,), 0) for part in ("weight", "bias"))
        rows = [
            WIDTH * part + unit for part in range(3) for unit in range(ALIVE)
        ]  # the first head's
        yield f"{block}attn.qkv.weight", (3 * WIDTH, WIDTH), (rows,), 0.15
        yield f"{block}attn.qkv.bias", (3 * WIDTH,), (whole,), 0
        yield f"{block}attn.proj.weight", (WIDTH, WIDTH), (whole, few), 0.3
        yield f"{block}attn.proj.bias", (WIDTH,), (whole,), 0
        yield from ((f"{block}norm2.{part}", (WIDTH,), (whole,), 0) for part in ("weight", "bias"))
        yield f"{block}mlp.fc1.weight", (HIDDEN, WIDTH), (few,), 0.15
        yield f"{block}mlp.fc1.bias", (HIDDEN,), (whole,), 0
        yield f"{block}mlp.fc2.weight", (WIDTH, HIDDEN), (whole, few), 0.3
        yield f"{block}mlp.fc2.bias", (WIDTH,), (whole,), 0
    yield from ((f"backbone.norm.{part}", (WIDTH,), (whole,), 0) for part in ("weight", "bias"))
    widths = (WIDTH, HEAD_HIDDEN, HEAD_HIDDEN, BOTTLENECK)
    for place in range(3):
        alive = (few, whole if not place else few)
        yield (
            f"head.mlp.{2 * place}.weight",
            (widths[place + 1], widths[place]),
            alive,
            0.6 if place else 0.15,
        )
        yield f"head.mlp.{2 * place}.bias", (widths[place + 1],), (whole,), 0
    yield "head.last_layer.weight_g", (PROTOTYPES, 1), (whole,), 0
    yield "head.last_layer.weight_v", (PROTOTYPES, BOTTLENECK), (whole, few), 0.6


def run(folder: Path, command: Command) -> str:
    """Run a command line in a folder, in a process of its own; gives what it printed."""
    printed = folder / PRINTED
    process = SERVER.Process(
        target=_run, args=(str(folder), command.module, list(command.words), str(printed))
    )
    process.start()
    process.join()
    text = printed.read_text(encoding="utf-8")
    assert process.exitcode == command.code, f"{command}: exit code {process.exitcode}\n{text}"
    return text


def _run(folder: str, module: str, words: list[str], printed: str) -> None:
    """As `python MODULE.py WORDS` or `python -m MODULE WORDS`."""
    import torch

    torch.set_num_threads(1)
    with open(printed, "w", encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    os.chdir(folder)
    os.environ["DINO_CACHE_DIR"] = str(Path(folder, "cache"))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def list_files(folder: Path) -> list[str]:
    """All files of a folder that commands ran in, but those whose names hold the time or the
    machine."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(
        name
        for name in names
        if not name.startswith((*EVENTS, "cache/", "linear_continued/", PRINTED))
    )


def read_tags(folder: Path) -> dict[str, list[int]]:
    """Steps of every TensorBoard scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [event.step for event in events.Scalars(tag)]
        for tag in sorted(events.Tags()["scalars"])
    }


def describe_machine() -> Mapping[str, str]:
    """What bits depend on."""
    import torch

    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": describe_processor(),
        # Grows when the step rounds differently, as since crops of all resolutions share a pass:
        # files of before must still load and continue, within tolerances.
        "rounding": "2",
    }


def describe_processor() -> str:
    """Vendor, family and model, by which matrix libraries choose their kernels."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    return " ".join(
        re.findall(r"^(?:vendor_id|cpu family|model)\s*: (\S+)", text, re.MULTILINE)[:3]
    ) or (platform.machine())


def freeze(folder: Path, target: Path) -> None:
    """Copy what is frozen out of a folder that `make_all` filled, large files compressed."""
    for name in (*KEPT, *(f"json/{path.name}" for path in sorted((folder / "json").iterdir()))):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name in COMPRESSED:
            place.with_name(f"{place.name}{ENDING}").write_bytes(
                lzma.compress((folder / name).read_bytes())
            )
        else:
            shutil.copyfile(folder / name, place)


def thaw(target: Path) -> None:
    """Copy the frozen files to a folder, as the commands wrote them."""
    for path in (path for path in FROZEN.rglob("*") if path.is_file()):
        place = target / path.relative_to(FROZEN)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ENDING:
            place.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        else:
            shutil.copyfile(path, place)


if __name__ == "__main__":
    make_all(Path(sys.argv[1]).resolve())
    freeze(Path(sys.argv[1]).resolve(), FROZEN)
