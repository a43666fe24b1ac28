"""Copies find their originals as the protocol says, and the command prints what a plain statement
of it prints."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import eval_copy_detection
from dino.errors import DataError, OptionError
from dino.evaluation import neighbors
from dino.evaluation.retrieval.copy_detection import (
    compute_whitening,
    find_nearest,
    fit_whitening,
    score_blocks,
)
from dino.evaluation.retrieval.copydays import Block
from dino.models.config import BackboneConfig, WeightsConfig
from dino.weights.load import load_backbone
from tests.evaluation.conftest import find_results
from tests.running import run_pair

Golden = Callable[[str], dict[str, np.ndarray]]
Lines = Callable[..., list[str]]
SIZE = 64
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def test_the_whitening_is_the_originals(golden: Golden, draw: Callable[..., torch.Tensor]) -> None:
    rows = draw(700, 200, 24) @ draw(701, 24, 24)
    operator = compute_whitening((rows.T @ rows / len(rows)).numpy())
    whitened = draw(702, 10, 24).double().numpy() @ operator.T
    np.testing.assert_allclose(
        whitened @ whitened.T, golden("whitening")["applied_gram"], rtol=2e-3, atol=2e-3
    )


def test_whitened_features_vary_alike_in_all_directions() -> None:
    rows = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.arange(1.0, 7.0)
    )
    rows -= rows.mean(dim=0)
    mean, operator = fit_whitening(rows)
    whitened = (rows - mean) @ operator.T
    torch.testing.assert_close(whitened.T @ whitened / len(rows), torch.eye(6), atol=1e-4, rtol=0)


def test_directions_without_variance_are_bounded() -> None:
    operator = compute_whitening(np.diag([4.0, 1e-9, 0.0]))
    np.testing.assert_allclose(np.linalg.norm(operator, axis=1), [0.5, *[1 / np.sqrt(4e-5)] * 2])


def test_blocks_are_scored_by_their_own_queries() -> None:
    nearest = torch.tensor([[0, 1], [0, 1], [1, 0], [2, 0]])
    blocks = (Block("one", ((0,), (1,))), Block("two", ((1, 0), (3,))))
    assert score_blocks(nearest, blocks) == {"one": (1 + 0.25) / 2, "two": 0.5}


def describe_plainly(paths: list[Path], weights: Path) -> np.ndarray:
    """CLS and GeM of each picture, one at a time: (N, 2 D) float64."""
    backbone = load_backbone(
        BackboneConfig(), WeightsConfig(pretrained_weights=str(weights))
    ).module
    rows = []
    for path in paths:
        with Image.open(path) as picture:
            square = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pixels = (np.asarray(square) / 255 - MEAN) / STD
        with torch.inference_mode():
            image = torch.from_numpy(pixels).float().permute(2, 0, 1)[None]
            tokens = backbone.get_intermediate_layers(image, n=1)[0][0].double().numpy()
        gem = (np.maximum(tokens[1:], 1e-6) ** 4).mean(axis=0) ** 0.25
        rows.append(np.concatenate([tokens[0], gem]))
    return np.array(rows)


def list_block(root: Path, name: str) -> list[Path]:
    return sorted(path for path in (root / name).iterdir() if path.suffix == ".jpg")


def score_plainly(
    root: Path,
    weights: Path,
    sizes: dict[str, int],
    distractors: list[Path],
    learnt_from: list[Path],
) -> list[str]:
    """The original's protocol with the number of images of each block told, and not counted."""
    queries = describe_plainly([path for name in sizes for path in list_block(root, name)], weights)
    originals = list_block(root, "original")
    database = describe_plainly([*originals, *distractors], weights)
    if learnt_from:
        learnt = describe_plainly(learnt_from, weights)
        values, vectors = np.linalg.eigh(learnt.T @ learnt / len(learnt))
        values[values < values.max() * 1e-5] = values.max() * 1e-5
        operator = np.diag(values**-0.5) @ vectors.T
        database, queries = (
            (rows - learnt.mean(axis=0)) @ operator.T for rows in (database, queries)
        )
    lines, start = [], 0
    for name, count in sizes.items():
        precisions = []
        for place, path in enumerate(list_block(root, name)):
            query = queries[start + place]
            order = np.argsort(-(database @ query) / np.linalg.norm(database, axis=1))[:20].tolist()
            right = (
                [k for k, o in enumerate(originals) if o.name[:4] == path.name[:4]]
                if name == "strong"
                else [place]
            )
            area, ranks = 0.0, sorted(order.index(k) for k in right if k in order)
            for found, rank in enumerate(ranks):
                area += ((found / rank if rank else 1) + (found + 1) / (rank + 1)) / (
                    2 * len(right)
                )
            precisions.append(area)
        assert len(precisions) == count
        lines.append(f"eval on {name} mAP={np.mean(precisions):.3f}")
        start += count
    return lines


def test_where_the_originals_sizes_hold_its_figures_are_printed(
    shared_data: Path, lively_weights: Path, score_lines: Lines
) -> None:
    """157 originals and 229 strong copies, with distractors and whitening: what the original's
    constants are for."""
    root, distractors = shared_data / "copydays157", shared_data / "copydays" / "distractors"
    learnt_from = shared_data / "photos" / "val" / "church"
    expected = score_plainly(
        root,
        lively_weights,
        {"original": 157, "strong": 229},
        sorted(distractors.iterdir()),
        sorted(learnt_from.iterdir()),
    )
    words = ("--imsize", SIZE, "--distractors_path", distractors, "--whitening_path", learnt_from)
    assert score_lines(eval_copy_detection, "--data_path", root, *words) == expected


def test_other_sizes_are_counted_and_every_block_is_scored(
    shared_data: Path, lively_weights: Path, score_lines: Lines, tmp_path: Path
) -> None:
    root, sizes = shared_data / "copydays", {"original": 30, "strong": 44}
    sizes |= {f"jpegqual/{quality}": 30 for quality in (3, 5, 8, 10, 15, 20, 30, 50, 75)}
    sizes |= {f"crops/{share}": 30 for share in (10, 15, 20, 30, 40, 50, 60, 70, 80)}
    words = ("--data_path", root, "--imsize", SIZE, "--json", tmp_path / "found.json")
    lines = score_lines(eval_copy_detection, *words)
    assert lines == score_plainly(root, lively_weights, sizes, [], [])
    told = json.loads((tmp_path / "found.json").read_text())
    assert (told["queries"], told["database"]) == (614, 30)
    assert lines == [f"eval on {name} mAP={value:.3f}" for name, value in told["map"].items()]


@pytest.fixture
def small_set(shared_data: Path, tmp_path: Path) -> Path:
    """Six originals and seven strong copies."""
    for block, count in (("original", 6), ("strong", 7)):
        (tmp_path / "set" / block).mkdir(parents=True)
        for path in list_block(shared_data / "copydays", block)[:count]:
            (tmp_path / "set" / block / path.name).symlink_to(path)
    return tmp_path / "set"


def test_batches_lists_and_spellings_change_nothing(
    small_set: Path, shared_data: Path, score_lines: Lines, tmp_path: Path
) -> None:
    distractors = shared_data / "copydays" / "distractors"
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(path) for path in sorted(distractors.iterdir())))
    words = ("--data_path", small_set, "--imsize", SIZE, "--distractors_path")
    plain = score_lines(eval_copy_detection, *words, distractors)
    assert len(plain) == 2
    more = ("--batch_size_per_gpu", 5, "--use_cuda", "false")
    assert score_lines(eval_copy_detection, *words, listed, *more) == plain


def test_two_processes_print_what_one_prints(
    small_set: Path, shared_data: Path, lively_weights: Path, score_lines: Lines, tmp_path: Path
) -> None:
    extra = (
        "--distractors_path",
        shared_data / "copydays" / "distractors",
        "--whitening_path",
        small_set / "strong",
    )
    words = ("--data_path", small_set, "--imsize", SIZE, *extra)
    one = score_lines(eval_copy_detection, *words)
    more = (
        "--device",
        "cpu",
        "--num_workers",
        0,
        "--pretrained_weights",
        lively_weights,
        "--batch_size_per_device",
        3,
    )
    first, second = run_pair(tmp_path, "eval_copy_detection", *words, *more)
    assert (first.code, second.code) == (0, 0), (first.text, second.text)
    assert find_results(first.text) == one and find_results(second.text) == []


def test_the_references_line_prints_on_two_cards_what_one_cpu_prints(
    small_set: Path, score_lines: Lines, launched_lines: Lines
) -> None:
    words = ("--data_path", small_set, "--imsize", SIZE, "--whitening_path", small_set / "strong")
    assert launched_lines("eval_copy_detection.py", *words) == score_lines(
        eval_copy_detection, *words
    )


def test_what_is_wrong_is_said_before_any_work(
    small_set: Path, tmp_path: Path, score_lines: Lines
) -> None:
    (tmp_path / "empty").mkdir()
    for words, error, named in [
        (
            ("--data_path", small_set / "original"),
            DataError,
            "has no folder original and no strong",
        ),
        (
            ("--data_path", small_set, "--distractors_path", tmp_path / "no"),
            DataError,
            "`distractors_path` .*not exist",
        ),
        (
            ("--data_path", small_set, "--whitening_path", tmp_path / "no"),
            DataError,
            "`whitening_path` .*not exist",
        ),
        (
            ("--data_path", small_set, "--whitening_path", tmp_path / "empty"),
            DataError,
            "`whitening_path` .*no image",
        ),
        (
            ("--data_path", small_set, "--imsize", 15),
            OptionError,
            r"`imsize` must be at least one patch, 16 pixels \(got 15\)",
        ),
    ]:
        with pytest.raises(error, match=named):
            score_lines(eval_copy_detection, *words)


def test_networks_without_patches_are_refused(small_set: Path) -> None:
    words = [
        "--data_path",
        str(small_set),
        "--device",
        "cpu",
        "--random_weights",
        "--arch",
        "resnet18",
    ]
    with pytest.raises(OptionError, match=re.escape("`arch` resnet18 has no patch tokens")):
        eval_copy_detection.main(words)


@pytest.mark.parametrize("numbers", [1, 30 * 4, 2**25])
def test_the_nearest_come_first_whatever_the_chunks(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    monkeypatch.setattr(neighbors, "CHUNK_NUMBERS", numbers)
    rng = np.random.RandomState(0)
    database, queries = (
        F.normalize(torch.tensor(rng.randn(count, 8)).float(), dim=1) for count in (30, 9)
    )
    expected = np.argsort(
        -(queries.cpu().double().numpy() @ database.cpu().double().numpy().T), axis=1
    )
    found = find_nearest(database.to(device), queries.to(device), 20)
    assert np.array_equal(found.numpy(), expected[:, :20])
    assert find_nearest(database[:7].to(device), queries.to(device), 20).shape == (9, 7)
