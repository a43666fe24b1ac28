"""The k-NN vote is exact against an independent statement of it, whatever the sizes; and the
command that prints it."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import eval_knn
from dino.data.packing import Packing, pack_images
from dino.data.sources import open_training_source
from dino.devices.cpu import CpuDevice
from dino.errors import DataError, DinoError, OptionError
from dino.evaluation import neighbors
from dino.evaluation.features import Features, LoaderConfig
from dino.evaluation.knn import predict_classes, score_backbone, score_knn
from dino.models.registry import build_backbone
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from dino.weights.load import TrainedBackbone
from tests.tables import write_parquet

Golden = Callable[[str], dict[str, np.ndarray]]
Draw = Callable[..., torch.Tensor]
RESULT = re.compile(r"^(\d+)-NN classifier result: Top1: ([\d.]+), Top5: ([\d.]+)$", re.MULTILINE)
SETS = {"main": (600, 200, 10, 500), "small": (150, 101, 3, 520), "many": (2400, 300, 1200, 540)}
NEIGHBORS = (1, 5, 10, 20, 100, 150)


@pytest.fixture
def run() -> Run:
    return Run(device=CpuDevice("fp32"), processes=Processes(Launch(), "gloo", "env://"))


def draw_golden_set(draw: Draw, name: str) -> tuple[Features, Features, int]:
    train_count, test_count, classes, base = SETS[name]
    centers, parts = draw(base + 4, classes, 32), []
    for offset, count in ((0, train_count), (1, test_count)):
        labels = torch.as_tensor(
            np.random.RandomState(base + 2 + offset).randint(0, classes, count)
        )
        rows = draw(base + offset, count, 32) + 0.4 * centers[labels]
        parts.append(Features(features=F.normalize(rows, dim=1), labels=labels))
    return parts[0], parts[1], classes


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("temperature", [0.07, 0.2])
@pytest.mark.parametrize("name", SETS)
def test_scores_and_winners_are_the_originals(
    name: str, temperature: float, golden: Golden, draw: Draw, run: Run
) -> None:
    numbers = golden("knn")
    train, test, classes = draw_golden_set(draw, name)
    settings = {"neighbors": NEIGHBORS, "temperature": temperature, "classes": classes}
    scores = score_knn(train, test, run=run, **settings)
    ranked = predict_classes(train, test.features, **settings)
    for k in NEIGHBORS:
        key = f"{name}/k{k}_T{temperature}"
        assert np.array_equal(ranked[k][:, 0].numpy(), numbers[f"{key}/class"]), key
        assert scores[k].top1 == pytest.approx(numbers[key][0], abs=1e-4), key
        assert scores[k].top5 == pytest.approx(numbers[key][1], abs=1e-4), key


@pytest.mark.usefixtures("device")
def test_classes_of_equal_votes_come_in_the_order_of_their_numbers() -> None:
    """Where fewer than five classes got a vote, the original fills its top 5 with others, in this
    order; so do we."""
    train = Features(
        features=F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1),
        labels=torch.tensor([7, 3]),
    )
    queries = torch.tensor([[1.0, 0.0]])
    ranked = predict_classes(train, queries, neighbors=(5, 6), temperature=0.07, classes=40)
    assert ranked[5].tolist() == ranked[6].tolist() == [[7, 3, 0, 1, 2]]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("k", "best"), [(1, [7]), (2, [7, 3]), (3, [7, 3, 0]), (4, [7, 3, 0, 1])])
def test_a_k_below_five_counts_that_many_classes(k: int, best: list[int]) -> None:
    """As the original's `narrow(1, 0, min(5, k))`: for k = 1 the second accuracy is the first."""
    train = Features(
        features=F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1),
        labels=torch.tensor([7, 3]),
    )
    ranked = predict_classes(
        train, torch.tensor([[1.0, 0.0]]), neighbors=(k,), temperature=0.07, classes=40
    )
    assert ranked[k].tolist() == [best]


class MeanColor(torch.nn.Module):
    """(B, C, S, S) -> (B, C)."""

    embed_dim = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(
    ("near", "far", "winner"),
    [(1, 2, "far"), (10, 15, "near")],
    ids=["all of 3 images vote", "20 of 25 images vote"],
)
def test_a_backbones_score_is_the_vote_of_20_images_or_of_all_if_there_are_fewer(
    tmp_path: Path, run: Run, near: int, far: int, winner: str
) -> None:
    """A far image has almost the weight of a near one, so the class with more voters wins."""
    images = {"near": (near, (200, 100, 100)), "far": (far, (200, 110, 100))}
    for name, (count, color) in images.items():
        for number in range(count):
            write_plain_image(tmp_path / "train" / name / f"{number}.png", color)
        write_plain_image(tmp_path / "val" / name / "query.png", (200, 100, 100))
    splits = tuple(open_training_source(str(tmp_path / split)) for split in ("train", "val"))
    backbone = TrainedBackbone(
        module=MeanColor(),
        arch="mean",
        patch_size=16,
        image_size=16,
        in_chans=3,
        normalization={"mean": [0.0] * 3, "std": [1.0] * 3},
    )
    train, query = splits
    query = dataclasses.replace(
        query, names=(f"{winner}/query.png",), labels=(train.classes.index(winner),)
    )
    assert (
        score_backbone(backbone, (train, query), run, LoaderConfig(batch_size=4, workers=0)).top1
        == 100.0
    )


def write_plain_image(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), color).save(path)


def compute_votes(
    train: Features, queries: torch.Tensor, k: int, temperature: float, classes: int
) -> np.ndarray:
    """The vote in float64 and one loop a query: (M, C)."""
    vectors, labels = train.features.cpu().numpy().astype(np.float64), train.labels.cpu().numpy()
    votes = np.zeros((len(queries), classes))
    for row, query in enumerate(queries.cpu().numpy().astype(np.float64)):
        similarity = vectors @ query
        for neighbor in np.argsort(-similarity)[:k]:
            votes[row, labels[neighbor]] += np.exp(similarity[neighbor] / temperature)
    return votes


def draw_set(count: int, classes: int, seed: int) -> Features:
    rng = np.random.RandomState(seed)
    rows = torch.as_tensor(rng.standard_normal((count, 8)).astype(np.float32))
    return Features(
        features=F.normalize(rows, dim=1), labels=torch.as_tensor(rng.randint(0, classes, count))
    )


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 1500])
@pytest.mark.parametrize("queries", [1, 50, 101])
@pytest.mark.parametrize("k", [1, 20, 120, 500])
def test_the_vote_is_that_of_a_plain_loop(classes: int, queries: int, k: int, run: Run) -> None:
    train, test = draw_set(120, classes, seed=1), draw_set(queries, classes, seed=2)
    votes = compute_votes(train, test.features, k, 0.07, classes)
    settings = {"neighbors": (k,), "temperature": 0.07, "classes": classes}
    ranked = predict_classes(train, test.features, **settings)[k].numpy()
    best = min(5, k, classes)
    assert ranked.shape == (queries, best)
    assert all(len(set(row)) == len(row) for row in ranked.tolist())
    found = np.take_along_axis(votes, ranked, axis=1)
    np.testing.assert_allclose(found, -np.sort(-votes, axis=1)[:, :best], rtol=1e-4)
    score = score_knn(train, test, run=run, **settings)[k]
    truth = test.labels.cpu().numpy()[:, None]
    assert score.top1 == pytest.approx(100 * (ranked[:, :1] == truth).mean())
    assert score.top5 == pytest.approx(100 * (ranked == truth).any(axis=1).mean())


def test_with_at_most_five_classes_the_top_five_are_all_of_them(run: Run) -> None:
    for classes in (1, 3, 5):
        train, test = draw_set(40, classes, seed=1), draw_set(30, classes, seed=2)
        scores = score_knn(
            train, test, neighbors=(5, 20), temperature=0.07, classes=classes, run=run
        )
        assert all(score.top5 == 100.0 for score in scores.values())


def test_small_chunks_give_what_one_large_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = draw_set(300, 50, seed=1), draw_set(101, 50, seed=2)
    settings = {"neighbors": (1, 20), "temperature": 0.07, "classes": 50}
    whole = predict_classes(train, test.features, **settings)
    for numbers in (1, 350 * 7, 350 * 100):
        monkeypatch.setattr(neighbors, "CHUNK_NUMBERS", numbers)
        parts = predict_classes(train, test.features, **settings)
        assert all(torch.equal(parts[k], whole[k]) for k in (1, 20))


def test_no_chunk_is_larger_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, split = [], torch.Tensor.split

    def remember(self: torch.Tensor, rows: int, *rest: Any, **more: Any) -> Any:
        sizes.append(rows)
        return split(self, rows, *rest, **more)

    monkeypatch.setattr(torch.Tensor, "split", remember)
    monkeypatch.setattr(neighbors, "CHUNK_NUMBERS", 350 * 7)
    train, test = draw_set(300, 50, seed=1), draw_set(101, 50, seed=2)
    predict_classes(train, test.features, neighbors=(3,), temperature=0.07, classes=50)
    assert set(sizes) == {7}


def test_processes_share_the_queries(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = draw_set(100, 4, seed=1), draw_set(31, 4, seed=2)
    settings = {"neighbors": (1, 20), "temperature": 0.07, "classes": 4}
    whole = score_knn(train, test, run=run, **settings)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(run.processes, "rank", rank)
        monkeypatch.setattr(run.processes, "world_size", 3)
        monkeypatch.setattr(run.processes, "all_reduce_sum", lambda hits: hits)
        parts.append(score_knn(train, test, run=run, **settings))
    for k in (1, 20):
        assert sum(part[k].top1 for part in parts) == pytest.approx(whole[k].top1)
        assert sum(part[k].top5 for part in parts) == pytest.approx(whole[k].top5)


@pytest.mark.usefixtures("device")
def test_a_low_temperature_does_not_overflow() -> None:
    angles = torch.tensor([0.5, 0.1])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    train = Features(features=rows, labels=torch.tensor([0, 1]))
    for temperature in (0.07, 0.01, 0.001):
        ranked = predict_classes(
            train, torch.tensor([[1.0, 0.0]]), neighbors=(2,), temperature=temperature, classes=2
        )
        assert ranked[2].tolist() == [[1, 0]]


def write_splits(root: Path, validation: str = "val") -> Path:
    """Three colors with noise, as class folders: 10 train and 4 validation images each."""
    rng = np.random.RandomState(0)
    for split, count in (("train", 10), (validation, 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.randint(0, 160, (40, 36, 3)).astype(np.uint8)
                pixels[:, :, channel] += 90
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny untrained network for 64-pixel images."""
    torch.manual_seed(0)
    args = {"arch": "vit_mini", "patch_size": 16, "global_crops_size": 64}
    teacher = build_backbone("vit_mini", img_size=64).state_dict()
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    torch.save({"teacher": teacher, "args": args}, path)
    return path


def evaluate(
    capsys: pytest.CaptureFixture, *words: object
) -> tuple[list[tuple[int, float, float]], str]:
    """Run the command; gives its result lines as (k, top-1, top-5), and all it printed."""
    capsys.readouterr()
    eval_knn.main(["--device", "cpu", "--num_workers", "0", *map(str, words)])
    printed = capsys.readouterr().out
    return [
        (int(k), float(top1), float(top5)) for k, top1, top5 in RESULT.findall(printed)
    ], printed


def test_features_are_dumped_and_loaded_with_equal_results(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("--nb_knn", 1, 5, 20)
    source = (
        "--data_path",
        images,
        "--pretrained_weights",
        weights,
        "--dump_features",
        tmp_path / "f",
    )
    computed, printed = evaluate(capsys, *words, *source)
    assert [k for k, _, _ in computed] == [1, 5, 20]
    assert all(top1 > 60 and top5 == 100 for _, top1, top5 in computed)  # colors are easy
    assert "device: cpu" in printed
    names = {"trainfeat.pth", "trainlabels.pth", "testfeat.pth", "testlabels.pth"}
    assert {path.name for path in (tmp_path / "f").iterdir()} == names
    loaded, _ = evaluate(capsys, *words, "--load_features", tmp_path / "f")
    assert loaded == computed


def test_shared_photos_are_scored(shared_data: Path, capsys: pytest.CaptureFixture) -> None:
    found, printed = evaluate(
        capsys,
        "--data_path",
        shared_data / "photos",
        "--random_weights",
        "--arch",
        "vit_mini",
        "--patch_size",
        32,
    )
    assert [k for k, _, _ in found] == [10, 20, 100, 200]
    assert all(
        10 < top1 <= top5 <= 100 for _, top1, top5 in found
    )  # even random features beat guessing
    assert "--random_weights: an untrained vit_mini" in printed


def test_a_checkpoint_is_read_from_any_flag_order(
    images: Path, weights: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("--data_path", images, "--nb_knn", 5)
    default, _ = evaluate(capsys, *words, "--pretrained_weights", weights)
    spelled, _ = evaluate(
        capsys,
        "--pretrained_weights",
        weights,
        *words,
        "--batch_size_per_gpu",
        7,
        "--store_on_device",
        "false",
    )
    assert default == spelled


def test_shards_and_tables_score_as_their_folders(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "val"):
        (tmp_path / "shards" / split).mkdir(parents=True)
        source = open_training_source(str(images / split))
        list(pack_images(source, tmp_path / "shards" / split, Packing(7), workers=1))
        write_parquet(tmp_path / "tables" / "data", source, split)
    shards, tables, expected = (
        evaluate(capsys, "--data_path", path, "--pretrained_weights", weights)[0]
        for path in (tmp_path / "shards", tmp_path / "tables", images)
    )
    assert shards == tables == expected and expected


def test_programs_get_the_result_as_json(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("--data_path", images, "--pretrained_weights", weights, "--nb_knn", 3, 5)
    found, _ = evaluate(capsys, *words, "--json", tmp_path / "knn.json")
    told = json.loads((tmp_path / "knn.json").read_text())
    assert [(int(k), score["top1"], score["top5"]) for k, score in told["knn"].items()] == found
    assert told["train"] == 30
    _, printed = evaluate(capsys, *words, "--nb_knn", 5, 200, "--json", tmp_path / "knn.json")
    told = json.loads((tmp_path / "knn.json").read_text())
    assert (
        set(told["knn"]) == {"5", "200"}
        and "is more than the 30 train images, so k is 30" in printed
    )  # by what was asked


def test_the_references_line_for_eight_cards_gives_the_cpus_figures(
    images: Path,
    launched_lines: Callable[..., list[str]],
    lively_weights: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    words = ("--data_path", images, "--nb_knn", 5, "--num_workers", 0)
    alone, _ = evaluate(capsys, *words, "--pretrained_weights", lively_weights)
    launched = launched_lines("eval_knn.py", *words)
    assert [
        (int(k), float(top1), float(top5)) for k, top1, top5 in RESULT.findall("\n".join(launched))
    ] == alone


def test_a_folder_named_validation_is_accepted(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = write_splits(tmp_path, "validation")
    found, _ = evaluate(capsys, "--data_path", root, "--pretrained_weights", weights, "--nb_knn", 5)
    assert [k for k, _, _ in found] == [5]


def test_more_neighbors_than_images_are_cut_with_a_line(
    images: Path, weights: Path, capsys: pytest.CaptureFixture
) -> None:
    found, printed = evaluate(
        capsys, "--data_path", images, "--pretrained_weights", weights, "--nb_knn", 5, 30, 31, 5000
    )
    assert [k for k, _, _ in found] == [5, 30]
    assert printed.count("is more than the 30 train images, so k is 30") == 2
    assert "--nb_knn 5000 is more" in printed


def test_max_batches_reads_the_first_batches_only(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    quick = ("--max_batches", 2, "--batch_size_per_device", 4, "--dump_features", tmp_path)
    evaluate(capsys, "--data_path", images, "--pretrained_weights", weights, "--nb_knn", 3, *quick)
    counts = {name: len(torch.load(tmp_path / f"{name}labels.pth")) for name in ("train", "test")}
    assert counts == {"train": 8, "test": 8}


def test_the_speed_of_the_extraction_is_written_for_tensorboard(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--data_path", images, "--pretrained_weights", weights, "--nb_knn", 3)
    evaluate(capsys, *words, "--dump_tb_events", tmp_path / "events")
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train/examples/sec", "test/examples/sec"}
    assert all(events.Scalars(tag)[0].value > 0 for tag in events.Tags()["scalars"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--nb_knn", "0"), "--nb_knn must be >= "),
        (("--nb_knn", "20", "-1"), "--nb_knn must be >= "),
        (("--temperature", "0"), "--temperature must be >= "),
        (("--temperature", "nan"), "--temperature must be >= "),
        (("--batch_size_per_device", "0"), "--batch_size_per_device must be >= "),
        (("--max_batches", "0"), "--max_batches must be >= "),
        (("--num_workers", "-1"), "--num_workers must be >= "),
        (("--patch_size", "0"), "--patch_size must be >= "),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    words: tuple[str, ...], named: str, images: Path, weights: Path
) -> None:
    source = ("--data_path", str(images), "--pretrained_weights", str(weights), "--device", "cpu")
    with pytest.raises(OptionError, match=re.escape(named)):
        eval_knn.main([*source, "--num_workers", "0", *words])


def test_a_missing_validation_folder_is_named(images: Path, weights: Path) -> None:
    words = [
        "--data_path",
        str(images / "train"),
        "--pretrained_weights",
        str(weights),
        "--device",
        "cpu",
    ]
    with pytest.raises(DataError, match="needs the folders train and val"):
        eval_knn.main(words)


def test_missing_weights_are_named_and_never_random(images: Path, tmp_path: Path) -> None:
    words = [
        "--data_path",
        str(images),
        "--pretrained_weights",
        str(tmp_path / "gone.pth"),
        "--device",
        "cpu",
    ]
    with pytest.raises(DinoError, match=r"gone\.pth does not exist") as caught:
        eval_knn.main(words)
    assert caught.value.exit_code == 2


def test_features_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"`load_features` .*trainfeat\.pth and trainlabels\.pth cannot be read"
    ):
        eval_knn.main(["--load_features", str(tmp_path), "--device", "cpu"])


def test_features_of_two_widths_are_refused(tmp_path: Path) -> None:
    for name, width in (("train", 4), ("test", 5)):
        torch.save(torch.rand(6, width), tmp_path / f"{name}feat.pth")
        torch.save(torch.zeros(6, dtype=torch.int64), tmp_path / f"{name}labels.pth")
    with pytest.raises(DataError, match=r"must have the same width \(got 4 and 5\)"):
        eval_knn.main(["--load_features", str(tmp_path), "--device", "cpu"])
