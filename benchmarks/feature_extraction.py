"""Features of images for k-NN beside the textbook's way: images/s and peak memory, from files and in memory.

    python benchmarks/feature_extraction.py FOLDER [--device cpu] [--images 256] [--batch 32] [--workers 2]

Each way runs in processes of its own, in turn, on the same untrained weights, in fp32. `files` is
all of it, the start of the loaders included; a folder with fewer images is repeated. `network` has
batches of drawn pixels on the device already. The textbook is the original's extraction: Pillow and
torchvision in a DataLoader, attention with its N x N weights, features gathered by index. Prints
one JSON line a run, and one with the medians' ratios and the features' cosine similarities: of the
same image both ways (the least), and of different images (the mean), once the mean over all images
is taken away, which untrained features share. Memory is the card's, or that of the process without
loaders.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import ExifTags, Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import transforms as T  # noqa: E402

from benchmarks import textbook_step  # noqa: E402
from benchmarks.train_step import SHAPES  # noqa: E402
from dino.data.photometric import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from dino.data.sources import ImageSource, open_images  # noqa: E402
from dino.devices.config import DeviceConfig  # noqa: E402
from dino.evaluation.features import LoaderConfig, extract_features  # noqa: E402
from dino.models.registry import build_backbone  # noqa: E402
from dino.runtime.config import LaunchConfig  # noqa: E402
from dino.runtime.context import Run, open_run  # noqa: E402
from dino.weights.load import TrainedBackbone  # noqa: E402

PATCH, SIZE = 16, 224
NEAR = 0.99  # least cosine similarity of both ways' features; crops differ by rounding
FromFiles = Callable[[ImageSource], Tensor]
OfBatch = Callable[[Tensor], Tensor]


def parse_words() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--arch", default="vit_small", choices=list(SHAPES))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--impl", choices=["textbook", "ours"], help="measure this way, in this process"
    )
    parser.add_argument("--features", help="where this process writes its features")
    return parser.parse_args()


def build_ours(words: argparse.Namespace, run: Run) -> tuple[FromFiles, OfBatch]:
    """Our extraction as `eval_knn.py` runs it."""
    module = build_weights(words.arch)
    infer = run.device.compile_eval(module)
    backbone = TrainedBackbone(
        module=module,
        arch=words.arch,
        patch_size=PATCH,
        image_size=SIZE,
        in_chans=3,
        normalization=None,
    )
    reading = LoaderConfig(batch_size=words.batch, workers=words.workers)
    return lambda source: extract_features(backbone, source, run, reading).features, infer


def build_weights(arch: str) -> nn.Module:
    """Our network, untrained, the same in every process."""
    torch.manual_seed(0)
    return build_backbone(arch, patch_size=PATCH, img_size=SIZE).eval()


class Pictures(Dataset):
    """Place -> float32 view and place, as the original's ReturnIndexDataset."""

    def __init__(self, source: ImageSource) -> None:
        """Keep the list."""
        self.source = source
        self.transform = T.Compose(
            [
                T.Resize(256, interpolation=T.InterpolationMode.BICUBIC),
                T.CenterCrop(SIZE),
                T.ToTensor(),
                T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        """Images."""
        return len(self.source)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        """One of them."""
        with self.source.path(place).open("rb") as file:
            return self.transform(Image.open(file).convert("RGB")), place


def build_textbook(words: argparse.Namespace, run: Run) -> tuple[FromFiles, OfBatch]:
    """The original's extraction, on our weights."""
    torch.backends.cudnn.allow_tf32 = True  # torch's default, which our device turns off in fp32
    dim, depth, heads = SHAPES[words.arch]
    model = textbook_step.VisionTransformer(
        patch=PATCH, dim=dim, depth=depth, heads=heads, size=SIZE
    )
    model.load_state_dict(build_weights(words.arch).state_dict())
    device = run.device.torch_device
    model.to(device).eval()

    @torch.no_grad()
    def extract(source: ImageSource) -> Tensor:
        loader = DataLoader(
            Pictures(source),
            batch_size=words.batch,
            num_workers=words.workers,
            pin_memory=words.device == "cuda",
        )
        features = torch.zeros(len(source), dim, device=device)
        for images, places in loader:
            found = model(images.to(device, non_blocking=True)).clone()
            features.index_copy_(0, places.to(device, non_blocking=True), found)
        return F.normalize(features, dim=1)

    return extract, torch.no_grad()(model)


def select_images(folder: str, count: int) -> ImageSource:
    """The first `count` images of a folder, which is repeated if it holds fewer."""
    source = open_upright(folder)
    return source.selected([index % len(source) for index in range(count)])


def open_upright(folder: str) -> ImageSource:
    """A folder without the pictures that lie on their side: only ours turns them as their EXIF says."""
    source = open_images(folder)
    return source.selected(
        [place for place in range(len(source)) if is_upright(source.path(place))]
    )


def is_upright(path: Path) -> bool:
    """Whether a picture is stored as it is to be seen."""
    with Image.open(path) as picture:
        return picture.getexif().get(ExifTags.Base.Orientation, 1) == 1


def measure(words: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process."""
    source = select_images(words.folder, words.images)
    with open_run(DeviceConfig(device=words.device), LaunchConfig()) as run:
        before = read_memory(run)
        extract, infer = (build_ours if words.impl == "ours" else build_textbook)(words, run)
        extract(source.selected(range(words.batch)))
        images = torch.randn(words.batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        images = run.device.to_device(images)
        batches = -(-words.images // words.batch)
        rates = {
            "network": time_images(
                run, batches * words.batch, lambda: [infer(images) for _ in range(batches)]
            ),
            "files": time_images(
                run, words.images, lambda: torch.save(extract(source).cpu(), words.features)
            ),
        }
        memory = read_memory(run) - before
    return {"impl": words.impl, **rates, "peak_memory_mb": round(memory / 1e6)}


def time_images(run: Run, count: int, work: Callable[[], object]) -> float:
    """Images a second."""
    run.device.synchronize()
    began = time.perf_counter()
    work()
    run.device.synchronize()
    return round(count / (time.perf_counter() - began), 2)


def read_memory(run: Run) -> int:
    """Bytes at most so far: of the card, or of this process."""
    return run.device.memory_peak() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(ours: Tensor, textbook: Tensor, distinct: int) -> dict[str, Any]:
    """Cosine similarities of features (N, D), whose first `distinct` are of different images."""
    ours, textbook = (
        F.normalize(part[:distinct] - ours[:distinct].mean(dim=0), dim=1)
        for part in (ours, textbook)
    )
    least, others = (
        (ours * textbook).sum(dim=1).min().item(),
        (ours * textbook.roll(1, dims=0)).sum(dim=1).mean(),
    )
    return {
        "cosine_same": round(least, 5),
        "cosine_others": round(others.item(), 5),
        "same_features": least > NEAR,
    }


def measure_in_turn(words: argparse.Namespace, folder: str) -> dict[str, list[dict[str, Any]]]:
    """What each way tells, a process a run; its features lie in `folder`."""
    runs: dict[str, list[dict[str, Any]]] = {"textbook": [], "ours": []}
    for _ in range(words.rounds):
        for impl, found in runs.items():
            command = [
                sys.executable,
                *sys.argv,
                "--impl",
                impl,
                "--features",
                f"{folder}/{impl}.pth",
            ]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            found.append(json.loads(line.stdout.splitlines()[-1]))
            print(json.dumps({**found[-1], "load": round(os.getloadavg()[0], 2)}), flush=True)
    return runs


def main() -> None:
    """Measure one way here, or both in turn in other processes."""
    words = parse_words()
    if words.impl:
        print(json.dumps(measure(words)))
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = measure_in_turn(words, folder)
        ours, textbook = (torch.load(f"{folder}/{impl}.pth") for impl in ("ours", "textbook"))
    told: dict[str, Any] = {}
    for key in ("files", "network", "peak_memory_mb"):
        rates = {impl: sorted(one[key] for one in found) for impl, found in runs.items()}
        told[f"times_{key}"] = round(
            statistics.median(rates["ours"]) / statistics.median(rates["textbook"]), 2
        )
        told[f"spread_{key}"] = {impl: [values[0], values[-1]] for impl, values in rates.items()}
    distinct = min(words.images, len(open_upright(words.folder)))
    print(json.dumps({**told, **compare(ours, textbook, distinct)}))


if __name__ == "__main__":
    main()
