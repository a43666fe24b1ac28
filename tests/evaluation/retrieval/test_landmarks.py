"""The command prints what a plain statement of the revisited protocol prints."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import eval_image_retrieval
from dino.errors import DataError, OptionError
from dino.evaluation.retrieval.landmarks import check_network
from dino.evaluation.retrieval.ranking import DEPTHS
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.registry import VITS, build_backbone
from dino.weights.load import load_backbone
from tests.evaluation.conftest import find_results, judge_plainly
from tests.running import run_pair

Lines = Callable[..., list[str]]
SIZE = 144
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def describe_plainly(
    path: Path, backbone: torch.nn.Module, box: list[float] | None, multiscale: bool
) -> np.ndarray:
    """One picture, alone, with Pillow's own thumbnail."""
    with Image.open(path) as picture:
        view = picture.convert("RGB")
    view = view.crop([round(edge) for edge in box]) if box else view
    view.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    image = torch.from_numpy((np.asarray(view) / 255 - MEAN) / STD).float().permute(2, 0, 1)[None]
    total = backbone(image)
    for scale in (1 / 2 ** (1 / 2), 1 / 2) if multiscale else ():
        total = total + backbone(
            F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
        )
    row = total[0].double().numpy()
    return row / np.linalg.norm(row)


@torch.inference_mode()
def score_plainly(
    root: Path, name: str, weights: Path, *, multiscale: bool = False, crop: bool = False
) -> list[str]:
    backbone = load_backbone(
        BackboneConfig(), WeightsConfig(pretrained_weights=str(weights))
    ).module
    told = json.loads((root / name / f"gnd_{name}.json").read_text())
    jobs = [(image, None) for image in told["imlist"]]
    jobs += [
        (image, entry["bbx"] if crop else None)
        for image, entry in zip(told["qimlist"], told["gnd"], strict=True)
    ]
    rows = [
        describe_plainly(root / name / "jpg" / f"{image}.jpg", backbone, box, multiscale)
        for image, box in jobs
    ]
    database, queries = np.array(rows[: len(told["imlist"])]), np.array(rows[len(told["imlist"]) :])
    figures: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for level in "MH":
        judged = []
        for query, entry in zip(queries, told["gnd"], strict=True):
            right = entry["hard"] + (entry["easy"] if level == "M" else [])
            ignored = entry["junk"] + (entry["easy"] if level == "H" else [])
            if right:
                judged.append(
                    judge_plainly(
                        np.argsort(-(database @ query)).tolist(), set(right), set(ignored)
                    )
                )
        precision, precisions = (
            np.mean(column, axis=0) * 100 for column in zip(*judged, strict=True)
        )
        figures[level] = np.around(precision, 2), np.around(precisions, 2)
    return [
        f">> {name}: mAP M: {figures['M'][0]}, H: {figures['H'][0]}",
        f">> {name}: mP@k[ 1  5 10] M: {figures['M'][1]}, H: {figures['H'][1]}",
    ]


@pytest.mark.parametrize(
    ("name", "words", "settings"),
    [
        ("roxford5k", (), {}),
        ("rparis6k", (), {}),
        ("rparis6k", ("--multiscale", "true"), {"multiscale": True}),
        ("roxford5k", ("--multiscale", "1", "--crop_queries"), {"multiscale": True, "crop": True}),
        ("roxford5k", ("--crop_queries",), {"crop": True}),
    ],
)
def test_the_figures_are_the_protocols(
    name: str,
    words: tuple[str, ...],
    settings: dict[str, bool],
    shared_data: Path,
    lively_weights: Path,
    score_lines: Lines,
) -> None:
    """Batches of any shape here, one picture at a time there."""
    root = shared_data / "revisitop"
    found = score_lines(
        eval_image_retrieval, "--data_path", root, "--dataset", name, "--imsize", SIZE, *words
    )
    assert found == score_plainly(root, name, lively_weights, **settings)


@pytest.fixture
def small_set(shared_data: Path, tmp_path: Path) -> Path:
    """Six images, odd ones among them, and three queries, the last of which has no hard image."""
    folder = tmp_path / "set" / "rparis6k"
    (folder / "jpg").mkdir(parents=True)
    broken = shared_data / "broken"
    odd = [
        "gray.jpg",
        "cmyk.jpg",
        "png_named.jpg",
        "exif_orientation_6.jpg",
        "progressive.jpg",
        "good.jpg",
    ]
    for number, file in enumerate([*odd, *odd[:3]]):
        (folder / "jpg" / f"i{number}.jpg").symlink_to(broken / file)
    gnd = [
        {"bbx": [2, 2, 90, 80], "easy": [k], "hard": [k + 3] * (k < 2), "junk": []}
        for k in range(3)
    ]
    content = {
        "gnd": gnd,
        "imlist": [f"i{k}" for k in range(6)],
        "qimlist": [f"i{k}" for k in range(6, 9)],
    }
    (folder / "gnd_rparis6k.pkl").write_bytes(pickle.dumps(content))
    return tmp_path / "set"


@pytest.mark.parametrize("multiscale", ["false", "true"])
def test_batches_and_spellings_change_nothing(
    small_set: Path, score_lines: Lines, tmp_path: Path, multiscale: str
) -> None:
    words = (
        "--data_path",
        small_set,
        "--dataset",
        "rparis6k",
        "--imsize",
        SIZE,
        "--multiscale",
        multiscale,
        "--json",
    )
    one = score_lines(
        eval_image_retrieval, *words, tmp_path / "one.json", "--batch_size_per_gpu", 1
    )
    many = score_lines(eval_image_retrieval, *words, tmp_path / "many.json", "--use_cuda", "false")
    assert one == many and len(one) == 2
    told = json.loads((tmp_path / "one.json").read_text())
    assert told == json.loads((tmp_path / "many.json").read_text())
    assert {"dataset", "map_M", "map_H"} < told.keys()
    assert (
        one[0]
        == f">> rparis6k: mAP M: {np.around(100 * told['map_M'], 2)}, H: {np.around(100 * told['map_H'], 2)}"
    )
    assert len([key for key in told if key.startswith("mp@")]) == 2 * len(DEPTHS)


def test_two_processes_print_what_one_prints(
    shared_data: Path, lively_weights: Path, score_lines: Lines, tmp_path: Path
) -> None:
    words = ("--data_path", shared_data / "revisitop", "--imsize", SIZE)
    one = score_lines(eval_image_retrieval, *words)
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
    first, second = run_pair(tmp_path, "eval_image_retrieval", *words, *more)
    assert (first.code, second.code) == (0, 0), (first.text, second.text)
    assert find_results(first.text) == one and find_results(second.text) == []


def test_the_references_line_prints_on_two_cards_what_one_cpu_prints(
    small_set: Path, score_lines: Lines, launched_lines: Lines
) -> None:
    words = (
        "--data_path",
        small_set,
        "--dataset",
        "rparis6k",
        "--imsize",
        SIZE,
        "--multiscale",
        "true",
    )
    one = score_lines(eval_image_retrieval, *words)
    assert launched_lines("eval_image_retrieval.py", *words, "--lazy_mode", "true") == one


def test_without_weights_those_of_the_landmarks_are_taken(
    small_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(VITS, "vit_small", VITS["vit_mini"])
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    torch.save(
        build_backbone("vit_small").state_dict(),
        tmp_path / "dino_vitsmall16_googlelandmark_pretrain.pth",
    )
    words = [
        "--data_path",
        str(small_set),
        "--dataset",
        "rparis6k",
        "--device",
        "cpu",
        "--num_workers",
        "0",
    ]
    eval_image_retrieval.main(words)
    printed = capsys.readouterr().out
    assert (
        "the published" in printed
        and "googlelandmark" in printed
        and len(find_results(printed)) == 2
    )


def test_convnets_are_ranked_too(small_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--data_path",
        str(small_set),
        "--dataset",
        "rparis6k",
        "--imsize",
        "50",
        "--device",
        "cpu",
    ]
    eval_image_retrieval.main(
        [*words, "--num_workers", "0", "--random_weights", "--arch", "resnet18"]
    )
    assert len(find_results(capsys.readouterr().out)) == 2


def test_what_is_wrong_is_said_before_any_work(
    small_set: Path, shared_data: Path, score_lines: Lines
) -> None:
    words = ("--data_path", small_set, "--dataset", "rparis6k")
    with pytest.raises(
        DataError, match=r"gnd_roxford5k\.pkl does not exist; name the folder that holds"
    ):
        score_lines(eval_image_retrieval, "--data_path", small_set)
    with pytest.raises(
        DataError,
        match=r"each side of .*i\d\.jpg must be at least 16 pixels \(got \d+ x \d+\)",
    ):
        score_lines(eval_image_retrieval, *words, "--imsize", 15)
    with pytest.raises(DataError, match="must be at least 32 pixels"):
        score_lines(eval_image_retrieval, *words, "--imsize", 30, "--multiscale", "true")
    image = small_set / "rparis6k" / "jpg" / "i4.jpg"
    image.unlink()
    with pytest.raises(DataError, match=r"lists jpg/i4\.jpg, which does not exist; 1 of 9"):
        score_lines(eval_image_retrieval, *words)
    image.symlink_to(shared_data / "broken" / "text.jpg")
    with pytest.raises(DataError, match=r"i4\.jpg cannot be decoded"):
        score_lines(eval_image_retrieval, *words)


def test_a_network_of_one_image_size_is_refused_in_one_line() -> None:
    network = BackboneConfig(arch="timm:mixer_s32_224")
    backbone = load_backbone(network, WeightsConfig(random_weights=True))
    with pytest.raises(
        OptionError, match=r"`arch` timm:mixer_s32_224 does not accept images of 64 x 48: "
    ):
        check_network(backbone, (48, 64))
