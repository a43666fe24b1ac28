"""Features come in the order of the data set, none twice and none missing, alone and in company."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dino.data.config import DataConfig
from dino.data.crops import center_crop
from dino.data.decode import read_image
from dino.data.image_source import ImageSource
from dino.data.photometric import Normalization, build_normalization
from dino.data.sources import open_training_source
from dino.devices.cpu import CpuDevice
from dino.errors import CheckpointError, DataError
from dino.evaluation import features as rooms
from dino.evaluation.features import (
    Features,
    LoaderConfig,
    build_loader_config,
    extract_features,
    load_features,
    save_features,
)
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from dino.weights.load import TrainedBackbone
from tests.running import SERVER

COUNT = 7


class FirstPixels(nn.Module):
    """(B, C, S, S) -> (B, C): the pixel in the corner, so that a feature tells its image."""

    embed_dim = 3

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]


def build_backbone(normalization: dict[str, list[float]] | None = None) -> TrainedBackbone:
    return TrainedBackbone(
        module=FirstPixels(),
        arch="corner",
        patch_size=16,
        image_size=16,
        in_chans=3,
        normalization=normalization,
    )


def build_run(launch: Launch | None = None, url: str = "env://") -> Run:
    return Run(device=CpuDevice("fp32"), processes=Processes(launch or Launch(), "gloo", url))


def write_images(root: Path, count: int = COUNT) -> ImageSource:
    """Plain colors in two class folders."""
    for index in range(count):
        path = root / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 18), (30 * index, 200, 250 - 30 * index)).save(path)
    return open_training_source(str(root))


def compute_expected(source: ImageSource, normalization: Normalization) -> Tensor:
    crops = torch.stack(
        [center_crop(read_image(source.path(index)), 16) for index in range(len(source))]
    )
    return nn.functional.normalize(normalization(crops)[:, :, 0, 0], dim=1)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("keep_on_device", [True, False])
def test_features_are_normalized_and_in_order(
    tmp_path: Path, batch_size: int, keep_on_device: bool
) -> None:
    source = write_images(tmp_path)
    reading = LoaderConfig(batch_size=batch_size, workers=0, keep_on_device=keep_on_device)
    found = extract_features(build_backbone(), source, build_run(), reading)
    assert torch.allclose(
        found.features, compute_expected(source, build_normalization(3)), atol=1e-6
    )
    assert found.labels.tolist() == list(source.labels or ())
    assert torch.allclose(found.features.norm(dim=1), torch.ones(COUNT), atol=1e-5)
    assert found.features.dtype == torch.float32


def test_the_normalization_of_the_file_is_used(tmp_path: Path) -> None:
    source = write_images(tmp_path)
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    found = extract_features(
        build_backbone(own), source, build_run(), LoaderConfig(batch_size=4, workers=0)
    )
    expected = compute_expected(source, Normalization(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    assert torch.allclose(found.features, expected, atol=1e-6)


def test_a_quick_look_reads_the_first_batches(tmp_path: Path) -> None:
    source = write_images(tmp_path)
    whole = extract_features(
        build_backbone(), source, build_run(), LoaderConfig(batch_size=2, workers=0)
    )
    quick = extract_features(
        build_backbone(), source, build_run(), LoaderConfig(batch_size=2, workers=0, max_batches=2)
    )
    assert torch.equal(quick.features, whole.features[:4])
    assert torch.equal(quick.labels, whole.labels[:4])


def test_a_bad_image_is_named(tmp_path: Path) -> None:
    source = write_images(tmp_path)
    source.path(3).write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        extract_features(
            build_backbone(), source, build_run(), LoaderConfig(batch_size=2, workers=0)
        )
    assert source.names[3] in str(caught.value)


def test_the_settings_say_how_images_are_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "choose_workers", lambda asked, **facts: (asked, *facts.values()))
    data, run = DataConfig(batch_size_per_device=5, num_workers=3), build_run()
    reading = build_loader_config(data, run, keep_on_device=False, max_batches=9)
    assert (reading.batch_size, reading.keep_on_device, reading.max_batches) == (5, False, 9)
    assert reading.workers == (3, 1, 0)
    assert build_loader_config(DataConfig(), run, keep_on_device=True).workers == (None, 1, 0)


def extract_in_company(rank: int, url: str, root: str, output: str) -> None:
    """One of two processes: extract each case and write what it got."""
    torch.set_num_threads(1)
    run = build_run(Launch(rank=rank, world_size=2, local_rank=rank, local_world_size=2), url)
    rooms.GATHER_ROWS = 2  # several slices even of a few rows
    found = {}
    for count in (COUNT, COUNT - 1, 1):
        source = open_training_source(str(Path(root, str(count))))
        for keep in (True, False):
            reading = LoaderConfig(batch_size=2, workers=0, keep_on_device=keep)
            result = extract_features(build_backbone(), source, run, reading)
            found[count, keep, None] = (result.features, result.labels)
        quick = LoaderConfig(batch_size=1, workers=0, max_batches=2)
        result = extract_features(build_backbone(), source, run, quick)
        found[count, True, 2] = (result.features, result.labels)
    torch.save(found, Path(output, f"{rank}.pt"))
    run.processes.close()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    sources = {
        count: write_images(tmp_path / "images" / str(count), count)
        for count in (COUNT, COUNT - 1, 1)
    }
    url = f"file://{tmp_path}/meet"
    jobs = [
        SERVER.Process(
            target=extract_in_company, args=(rank, url, str(tmp_path / "images"), str(tmp_path))
        )
        for rank in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0]
    for rank in range(2):
        for (count, _, quick), (rows, labels) in torch.load(tmp_path / f"{rank}.pt").items():
            expected = compute_expected(sources[count], build_normalization(3))[
                : 4 if quick else None
            ]
            assert torch.allclose(rows, expected, atol=1e-6)
            assert labels.tolist() == list(sources[count].labels or ())[: len(expected)]


def test_saved_features_come_back(tmp_path: Path) -> None:
    features = Features(features=torch.rand(5, 3), labels=torch.arange(5))
    save_features(tmp_path / "new" / "folder", "train", features)
    loaded = load_features(tmp_path / "new" / "folder", "train")
    assert torch.equal(loaded.features, features.features)
    assert torch.equal(loaded.labels, features.labels)


def test_features_cannot_be_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(CheckpointError, match="`dump_features` .* cannot be written to"):
        save_features(
            tmp_path / "file" / "folder",
            "train",
            Features(features=torch.rand(1, 1), labels=torch.zeros(1)),
        )


def test_damaged_features_are_named(tmp_path: Path) -> None:
    (tmp_path / "trainfeat.pth").write_bytes(np.random.RandomState(0).bytes(100))
    (tmp_path / "trainlabels.pth").write_bytes(b"")
    with pytest.raises(DataError, match=r"trainfeat\.pth and trainlabels\.pth cannot be read"):
        load_features(tmp_path, "train")


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.rand(8, 3), torch.arange(7)),
        (torch.rand(8), torch.arange(8)),
        ({}, torch.arange(8)),
        (torch.rand(0, 3),) * 2,
    ],
)
def test_features_and_labels_that_do_not_go_together_are_refused(
    features: object, labels: object, tmp_path: Path
) -> None:
    torch.save(features, tmp_path / "trainfeat.pth")
    torch.save(labels, tmp_path / "trainlabels.pth")
    with pytest.raises(DataError, match=r"trainfeat\.pth must hold \(N, D\) features"):
        load_features(tmp_path, "train")


ROWS, LABELS = torch.rand(8, 3), torch.arange(8)
NAN = torch.full((8, 3), torch.nan).where(LABELS[:, None] == 5, ROWS)
ODD_FEATURES = {
    "a NaN": (NAN, LABELS, "holds NaN or infinite numbers in 1 of 8 rows, the first is row 5"),
    "integers": (ROWS.long(), LABELS, r"floating-point numbers .* \(got integers and integers\)"),
    "float labels": (ROWS, LABELS.float(), "and floating-point numbers"),
    "negative labels": (ROWS, LABELS - 1, r"class numbers from 0 to 999999 \(got -1\)"),
    "huge labels": (ROWS, LABELS + 10**9, r"from 0 to 999999 \(got 1000000007\)"),
    "sparse": (torch.eye(8, 3).to_sparse(), LABELS, r"trainfeat\.pth must be a dense tensor"),
    "expanded": (ROWS, torch.zeros(1).long().expand(8), "stored whole, not expanded"),
}


@pytest.mark.parametrize("name", ODD_FEATURES)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_features_and_labels_that_cannot_vote_are_named(name: str, tmp_path: Path) -> None:
    features, labels, reason = ODD_FEATURES[name]
    torch.save(features, tmp_path / "trainfeat.pth")
    torch.save(labels, tmp_path / "trainlabels.pth")
    with pytest.raises(DataError, match=reason) as caught:
        load_features(tmp_path, "train")
    assert str(caught.value).startswith(f"`load_features` {tmp_path}")


def test_features_that_require_gradients_and_short_labels_are_plain_afterwards(
    tmp_path: Path,
) -> None:
    torch.save(ROWS.clone().requires_grad_(), tmp_path / "trainfeat.pth")
    torch.save(LABELS.to(torch.uint8), tmp_path / "trainlabels.pth")
    found = load_features(tmp_path, "train")
    assert torch.equal(found.features, ROWS) and not found.features.requires_grad
    assert found.labels.dtype == torch.int64 and torch.equal(found.labels, LABELS)


class WholeMean(nn.Module):
    """(B, C, H, W) -> (B, C): the mean color, for views of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return images.mean(dim=(2, 3))


def test_views_of_several_shapes_come_in_order_with_one_batch_size_a_shape(tmp_path: Path) -> None:
    source = write_images(tmp_path)
    shapes = [(4, 6)] * 4 + [(6, 4)] + [(5, 5)] * 2
    for index, (height, width) in enumerate(shapes):
        Image.new("RGB", (width, height), (30 * index, 200, 250 - 30 * index)).save(
            source.path(index)
        )
    module = WholeMean()
    backbone = TrainedBackbone(
        module=module, arch="mean", patch_size=1, image_size=16, in_chans=3, normalization=None
    )
    reading = LoaderConfig(batch_size=3, workers=0)
    found = extract_features(
        backbone, source, build_run(), reading, cut=lambda image: image, shapes=shapes
    )
    pixels = [
        build_normalization(3)(read_image(source.path(index)))[:, 0, 0] for index in range(COUNT)
    ]
    assert torch.allclose(
        found.features, nn.functional.normalize(torch.stack(pixels), dim=1), atol=1e-5
    )
    assert module.seen == [(3, 3, 4, 6), (3, 3, 4, 6), (1, 3, 6, 4), (2, 3, 5, 5)]
