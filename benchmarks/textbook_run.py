"""A recipe trained by the published algorithm, stated plainly: the end-to-end check of a whole run.

    python main_dino.py --config configs/imagenette.yaml --seed 0 --saveckp_freq 1 \
        --data_path imagenette/train --output_dir output/ours/0
    python benchmarks/textbook_run.py train --config configs/imagenette.yaml --seed 0 \
        --data_path imagenette/train --output_dir output/textbook/0
    python benchmarks/textbook_run.py compare --data_path imagenette --epochs 1 2 3 4 5 \
        --ours output/ours/{0,1,2} --textbook output/textbook/{0,1,2}

`train` reads the recipe's numbers only. Everything else is the textbook's: torchvision's ImageFolder,
the original's transforms on Pillow images, a shuffling DataLoader, cosine schedules, the step of
`textbook_step.py`, a frozen last layer. By default it trains a quarter of the epochs of the full
schedule. It keeps a checkpoint for each epoch, in the original's form, and continues from the newest.
`compare` evaluates the teachers of both sides with the same k-NN and prints a JSON line a run, then
the difference of the means for each epoch in pooled standard errors.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).parent.parent))

import dino  # noqa: E402
from benchmarks.textbook_step import Head, Network, Textbook, VisionTransformer  # noqa: E402
from dino.cli.options import parse  # noqa: E402
from dino.config import as_dict  # noqa: E402
from dino.data.photometric import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402

SHAPES = {"vit_micro": {"dim": 128, "depth": 3, "heads": 4}}
ORIGINAL_SIZES = (224, 96)  # the sides that the original's blur radius is meant for
NEIGHBORS = 20


def main() -> None:
    """Train one textbook run, or compare runs of both sides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train")
    one.set_defaults(run=train)
    one.add_argument("--config", required=True)
    one.add_argument("--data_path", required=True)
    one.add_argument("--output_dir", type=Path, required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--share", type=float, default=0.25, help="of the epochs to train")
    both = commands.add_parser("compare")
    both.set_defaults(run=compare)
    both.add_argument("--data_path", required=True)
    both.add_argument("--ours", nargs="+", type=Path, required=True)
    both.add_argument("--textbook", nargs="+", type=Path, required=True)
    both.add_argument("--epochs", nargs="+", type=int, required=True)
    words = parser.parse_args()
    words.run(words)


class Stem(nn.Module):
    """Small convolutions, each halving the side, before the projection (Xiao et al., 2021)."""

    def __init__(self, patch: int, dim: int) -> None:
        """Make one convolution for each halving of the patch."""
        super().__init__()
        steps = int(math.log2(patch))
        widths = [3, *(dim // 2 ** (steps - 1 - i) for i in range(steps))]
        self.convs = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(1, b), nn.ReLU())
                for a, b in zip(widths, widths[1:], strict=False)
            )
        )
        for conv, _, _ in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N - 1, D)."""
        return self.proj(self.convs(x)).flatten(2).transpose(1, 2)


def build_network(config: TrainConfig) -> Network:
    """The recipe's backbone and head with the original's initial weights."""
    shape, patch = SHAPES[config.backbone.chosen_arch], config.backbone.chosen_patch_size
    backbone = VisionTransformer(patch=patch, size=config.crops.global_crops_size, **shape)
    backbone.patch_embed = Stem(patch, shape["dim"])
    head = Head(shape["dim"], config.student.out_dim)
    if config.student.use_bn_in_head:
        first, gelu, second, _, last = head.mlp
        head.mlp = nn.Sequential(
            first, nn.BatchNorm1d(2048), gelu, second, nn.BatchNorm1d(2048), nn.GELU(), last
        )
    network = Network(backbone, head)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    for tokens in (backbone.cls_token, backbone.pos_embed):
        nn.init.trunc_normal_(tokens, std=0.02)
    return network


def blur(image: Image.Image, scale: float) -> Image.Image:
    """Pillow's Gaussian blur with a radius of 0.1 to 2 pixels at the original's sizes."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0) * scale))


def build_transform(
    size: int, area: tuple[float, float], *, blurred: float, solarized: float, scale: float
) -> Callable[[Image.Image], Tensor]:
    """One view, as in the original's DataAugmentationDINO."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                size, scale=area, interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([functools.partial(blur, scale=scale)], blurred),
            transforms.RandomApply([ImageOps.solarize], solarized),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


class Views:
    """Both global views, then the local ones."""

    def __init__(self, config: TrainConfig) -> None:
        """Make the transform of each view."""
        crops, (large, small) = config.crops, ORIGINAL_SIZES
        size, area = crops.global_crops_size, crops.global_crops_scale
        scale = min(1.0, size / large)
        self.views = [
            build_transform(size, area, blurred=1.0, solarized=0.0, scale=scale),
            build_transform(size, area, blurred=0.1, solarized=0.2, scale=scale),
        ]
        size, area = crops.local_crops_size, crops.local_crops_scale
        scale = min(1.0, size / small)
        local = build_transform(size, area, blurred=0.5, solarized=0.0, scale=scale)
        self.views += [local] * crops.local_crops_number

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """An RGB image -> V tensors (3, S, S)."""
        return [view(image) for view in self.views]


def cosine(base: float, final: float, total: int, warmup: int = 0) -> np.ndarray:
    """The original's schedule: linear from 0 for `warmup` iterations, then half a cosine."""
    steps = np.arange(total - warmup)
    falling = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([np.linspace(0, base, warmup), falling])


def train(words: argparse.Namespace) -> None:
    """Train the first share of the recipe's epochs; print a JSON line for each."""
    config = parse(TrainConfig, ["--config", words.config])
    torch.manual_seed(words.seed)
    random.seed(words.seed)
    textbook = build_textbook(config)
    loader = DataLoader(
        ImageFolder(words.data_path, Views(config)),
        batch_size=config.data.batch_size_per_device,
        shuffle=True,
        drop_last=True,
        num_workers=1,
        worker_init_fn=seed_worker,
    )
    words.output_dir.mkdir(parents=True, exist_ok=True)
    began = continue_run(textbook, words.output_dir)
    for epoch in range(began, round(config.run.epochs * words.share)):
        start = time.perf_counter()
        torch.manual_seed(1000 * words.seed + epoch)
        losses = train_epoch(textbook, config, loader, epoch)
        seconds = time.perf_counter() - start
        save(textbook, config, words.output_dir, epoch + 1)
        line = {"seed": words.seed, "epoch": epoch + 1, "loss": statistics.fmean(losses)}
        print(json.dumps(line | {"seconds": round(seconds, 1)}), flush=True)


def build_textbook(config: TrainConfig) -> Textbook:
    """The textbook's student, teacher and optimizer for a recipe, on the CPU."""
    autocast: Callable[[], Any] = contextlib.nullcontext
    if config.precision.precision == "bf16":
        autocast = functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    return Textbook(
        functools.partial(build_network, config),
        prototypes=config.student.out_dim,
        clip=3.0,
        device=torch.device("cpu"),
        autocast=autocast,
        scaler=None,
    )


def seed_worker(_: int) -> None:
    """Seed the generators of a loader's process that torch does not."""
    random.seed(torch.initial_seed())


def train_epoch(
    textbook: Textbook, config: TrainConfig, loader: DataLoader[Any], epoch: int
) -> list[float]:
    """One pass over the images; the loss of each iteration."""
    optim, teacher = config.optim, config.teacher
    length = len(loader)
    total = config.run.epochs * length
    rate = optim.lr * config.data.batch_size_per_device / 256
    rates = cosine(rate, optim.min_lr, total, (optim.warmup_epochs or 0) * length)
    decays = cosine(optim.weight_decay, optim.weight_decay_end, total)
    momenta = cosine(teacher.momentum_teacher, 1.0, total)
    frozen = textbook.student.head.last_layer.weight_v
    frozen.requires_grad_(epoch >= optim.freeze_last_layer)
    losses = []
    for index, (views, _) in enumerate(loader):
        at = epoch * length + index
        globals_, locals_ = torch.cat(views[:2]), views[2:]
        loss = textbook.step(
            [globals_, torch.cat(locals_)] if locals_ else [globals_],
            rate=rates[at],
            decay=decays[at],
            momentum=momenta[at],
            temperature=teacher.teacher_temp,
            enter=lambda _: None,
        )
        losses.append(loss)
    return losses


def continue_run(textbook: Textbook, folder: Path) -> int:
    """Load the newest checkpoint; the number of finished epochs."""
    saved = sorted(folder.glob("checkpoint*.pth"))
    if not saved:
        return 0
    state = torch.load(saved[-1], weights_only=False)
    textbook.student.load_state_dict(state["student"])
    textbook.teacher.load_state_dict(state["teacher"])
    textbook.optimizer.load_state_dict(state["optimizer"])
    textbook.center = state["center"]
    return int(state["epoch"])


def save(textbook: Textbook, config: TrainConfig, folder: Path, epoch: int) -> None:
    """Write a checkpoint in the original's form, whole or not at all."""
    state = {
        "student": textbook.student.state_dict(),
        "teacher": textbook.teacher.state_dict(),
        "optimizer": textbook.optimizer.state_dict(),
        "center": textbook.center,
        "epoch": epoch,
        "args": as_dict(config),
    }
    draft = folder / "draft"
    torch.save(state, draft)
    draft.rename(name_checkpoint(folder, epoch))


def name_checkpoint(folder: Path, epoch: int) -> Path:
    """The file for a number of finished epochs, named by the index of the last, as the original's."""
    return folder / f"checkpoint{epoch - 1:04}.pth"


def compare(words: argparse.Namespace) -> None:
    """Print the k-NN of each epoch and run, and how far the two sides are apart."""
    scores = {
        side: [[score(run, epoch, words.data_path) for epoch in words.epochs] for run in runs]
        for side, runs in (("ours", words.ours), ("textbook", words.textbook))
    }
    for side, runs in scores.items():
        for knn in runs:
            print(json.dumps({"side": side, "epochs": words.epochs, "knn": knn}))
    for index, epoch in enumerate(words.epochs):
        sides = [[knn[index] for knn in runs] for runs in scores.values()]
        means = [statistics.fmean(side) for side in sides]
        many = min(map(len, sides)) > 1  # one run a side has no spread
        parts = [statistics.variance(side) / len(side) if many else math.nan for side in sides]
        error = math.sqrt(sum(parts))
        apart = means[0] - means[1]
        line = {
            "epoch": epoch,
            "means": means,
            "difference": apart,
            "standard_errors": apart / error,
        }
        print(json.dumps(line))


def score(run: Path, epoch: int, data_path: str) -> float:
    """k-NN top-1 in per cent of the teacher after a number of epochs."""
    backbone = dino.load(name_checkpoint(run, epoch))
    return dino.knn(backbone, data_path, nb_knn=NEIGHBORS)[NEIGHBORS].top1


if __name__ == "__main__":
    main()
