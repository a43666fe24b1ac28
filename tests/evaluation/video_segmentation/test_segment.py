"""Label propagation gives the original's label maps, alone and in company, on the CPU and on
simulated cards."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import compute_segmentation_metrics
import eval_ipace_segmentation
import eval_video_segmentation
from dino.data.label_maps import read_label_map
from dino.errors import DataError, DinoError, OptionError, WeightsError
from dino.evaluation.video_segmentation import segment as rooms
from dino.evaluation.video_segmentation.davis import DAVIS_PALETTE, Clip
from dino.evaluation.video_segmentation.ipace import DRIVING_PALETTE
from dino.evaluation.video_segmentation.segment import choose_normalization, share_clips
from dino.models.registry import build_backbone
from dino.runtime.ownership import check_own
from dino.weights.load import TrainedBackbone
from tests import hpu_simulator
from tests.running import on_simulated_card, run_alone, run_pair

PATCH = 32  # pixels; coarse, so that a frame takes 30 ms
VIDEO, DRIVING = "eval_video_segmentation", "eval_ipace_segmentation"
needs_card = pytest.mark.skipif(
    hpu_simulator.why_unavailable() is not None,
    reason=f"no simulated hpu: {hpu_simulator.why_unavailable()}",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny untrained ViT."""
    torch.manual_seed(0)
    args = {"arch": "vit_mini", "patch_size": PATCH, "global_crops_size": 224}
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    torch.save(
        {"teacher": build_backbone("vit_mini", patch_size=PATCH).state_dict(), "args": args}, path
    )
    return path


def paint(size: tuple[int, int], number: int) -> tuple[Image.Image, Image.Image]:
    """A frame with two colored blocks that move, and its label map; `size` is width and height."""
    width, height = size
    rng = np.random.default_rng(1)
    pixels = rng.integers(60, 100, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), dtype=np.uint8)
    for label, (color, top) in enumerate((((250, 40, 30), 0.1), ((30, 60, 240), 0.5)), start=1):
        left = int(width * (0.1 + 0.05 * number * label))
        place = (
            slice(int(height * top), int(height * (top + 0.35))),
            slice(left, left + width // 3),
        )
        pixels[place], labels[place] = color, label
    return Image.fromarray(pixels), Image.fromarray(labels)


def write_davis(root: Path, sequences: dict[str, tuple[int, tuple[int, int]]]) -> Path:
    """Sequences of so many painted frames of a size, in the layout of DAVIS."""
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(sequences))
    for name, (count, size) in sequences.items():
        frames, labels = (root / part / "480p" / name for part in ("JPEGImages", "Annotations"))
        for folder in (frames, labels):
            folder.mkdir(parents=True)
        for number in range(count):
            frame, label = paint(size, number)
            frame.save(frames / f"{number:05}.jpg", quality=95)
        label = paint(size, 0)[1]
        label.putpalette(DAVIS_PALETTE)
        label.save(labels / "00000.png")
    return root


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sequences of odd sizes, one of them upright, one of a single frame."""
    sizes = {"wide": (5, (213, 120)), "tall": (4, (67, 101)), "still": (1, (64, 48))}
    return write_davis(tmp_path_factory.mktemp("davis"), sizes)


def segment(
    main: Callable[[list[str]], None], weights: Path, data: object, output: Path, *words: object
) -> Path:
    """Run a command in this process."""
    basis = (
        "--pretrained_weights",
        weights,
        "--data_path",
        data,
        "--output_dir",
        output,
        "--device",
        "cpu",
    )
    main([*map(str, basis), "--num_workers", "0", *map(str, words)])
    return output


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """Every label map below a folder by its path in it; all that lies there is label maps."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): read_label_map(path).labels for path in files}


def differing(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest share of pixels, of any frame, that has another label."""
    assert found.keys() == expected.keys()
    return max(float((found[name] != expected[name]).mean()) for name in found)


@pytest.fixture(scope="module")
def on_cpu(davis: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process on the CPU makes of the painted sequences."""
    return segment(
        eval_video_segmentation.main, weights, davis, tmp_path_factory.mktemp("cpu") / "out"
    )


def segment_as_the_original(
    network: torch.nn.Module, frames: list[Path], labels: Path
) -> list[np.ndarray]:
    """The original's evaluation of one sequence, stated plainly: all positions with all, no tiles,
    no buffers."""

    def read(path: Path) -> torch.Tensor:
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        size = (
            (480, 480 * height // width // 64 * 64)
            if height > width
            else (480 * width // height // 64 * 64, 480)
        )
        scaled = torch.from_numpy(
            cv2.resize(image, size)[:, :, ::-1].astype(np.float32) / 255
        ).permute(2, 0, 1)
        mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.228, 0.224, 0.225]])[
            :, :, None, None
        ]
        return (scaled - mean) / deviation

    def extract(frame: torch.Tensor) -> torch.Tensor:
        return F.normalize(network.get_intermediate_layers(frame[None], n=1)[0][0, 1:], dim=1)

    truth = np.array(Image.open(labels))
    first = read(frames[0])
    rows, columns = first.shape[1] // PATCH, first.shape[2] // PATCH
    small = np.array(Image.fromarray(truth).resize((columns, rows), 0))
    places = np.stack(np.mgrid[:rows, :columns], axis=-1).reshape(-1, 2)
    near = torch.from_numpy(
        (np.abs(places[:, None] - places[None]).max(axis=2) <= 12).astype(np.float32)
    )
    context = [
        (
            extract(first),
            F.one_hot(torch.from_numpy(small).long()).reshape(rows * columns, -1).float(),
        )
    ]
    decided = [truth]
    for path in frames[1:]:
        used = [context[0], *context[1:][-7:]]
        target = extract(read(path))
        affinity = torch.cat(
            [torch.exp(target @ features.T / 0.1) * near for features, _ in used], dim=1
        )
        affinity[affinity < affinity.topk(5, dim=1).values[:, -1:]] = 0
        soft = (
            affinity / affinity.sum(dim=1, keepdim=True) @ torch.cat([known for _, known in used])
        )
        context.append((target, soft))
        maps = soft.T.reshape(1, -1, rows, columns)
        maps = F.interpolate(maps, scale_factor=PATCH, mode="bilinear", align_corners=False)[0]
        for channel in maps:
            if channel.max() > 0:
                channel -= channel.min()
                channel /= channel.max()
        chosen = maps.argmax(dim=0).numpy().astype(np.uint8)
        decided.append(np.array(Image.fromarray(chosen).resize(truth.shape[::-1], 0)))
    return decided


@torch.inference_mode()
def test_label_maps_are_the_originals(davis: Path, weights: Path, on_cpu: Path) -> None:
    network = build_backbone("vit_mini", patch_size=PATCH).eval()
    network.load_state_dict(torch.load(weights)["teacher"])
    expected = {}
    for name in ("wide", "tall", "still"):
        frames = sorted((davis / "JPEGImages" / "480p" / name).iterdir())
        maps = segment_as_the_original(
            network, frames, davis / "Annotations" / "480p" / name / "00000.png"
        )
        expected |= {
            f"{name}/{path.stem}.png": found for path, found in zip(frames, maps, strict=True)
        }
    found = read_all(on_cpu)
    assert differing(found, expected) < 1e-3  # rounding, at borders
    assert set(np.unique(found["wide/00004.png"]).tolist()) == {0, 1, 2}


def link_start(source: Path, target: Path, count: int) -> None:
    """The first files of a folder, as links."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir())[:count]:
        (target / path.name).symlink_to(path)


def link_davis(source: Path, target: Path, frames: int, labels: int) -> Path:
    """The first frames and label maps of two sequences."""
    (target / "ImageSets" / "2017").mkdir(parents=True)
    (target / "ImageSets" / "2017" / "val.txt").write_text("dog\nhorsejump-high\n")
    for name in ("dog", "horsejump-high"):
        for part, count in (("JPEGImages", frames), ("Annotations", labels)):
            link_start(source / part / "480p" / name, target / part / "480p" / name, count)
    return target


def test_real_frames_are_segmented_as_the_original_does(
    shared_data: Path, weights: Path, tmp_path: Path
) -> None:
    """The first frames of two real sequences; colors are DAVIS's, the first frame's labels are the
    annotation."""
    data = link_davis(shared_data / "davis", tmp_path / "davis", frames=4, labels=1)
    output = segment(
        eval_video_segmentation.main, weights, data, tmp_path / "out", "--num_workers", 1
    )
    network = build_backbone("vit_mini", patch_size=PATCH).eval()
    network.load_state_dict(torch.load(weights)["teacher"])
    for name in ("dog", "horsejump-high"):
        first = data / "Annotations" / "480p" / name / "00000.png"
        with torch.inference_mode():
            expected = segment_as_the_original(
                network, sorted((data / "JPEGImages/480p" / name).iterdir()), first
            )
        for number, labels in enumerate(expected):
            found = read_label_map(output / name / f"{number:05}.png")
            assert found.palette == DAVIS_PALETTE and (found.labels != labels).mean() < 1e-3
        assert (expected[0] == read_label_map(first).labels).all()


def test_what_was_segmented_is_scored_as_by_the_command_for_it(
    shared_data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On the composed sequences, whose masks are exact."""
    data, told = shared_data / "davis_synth", tmp_path / "told.json"
    output = segment(
        eval_video_segmentation.main, weights, data, tmp_path / "out", "--evaluate", "--json", told
    )
    assert "J&F-Mean" in capsys.readouterr().out
    alone = tmp_path / "alone.json"
    words = ("--dataset_path", data, "--prediction_path", output, "--json", alone)
    compute_segmentation_metrics.main([*map(str, words)])
    found, expected = json.loads(told.read_text()), json.loads(alone.read_text())
    assert {"layout": "davis", **found["scores"]} == expected
    assert (found["frames"], expected["frames"]) == (24, 20)  # first and last are not scored
    assert 0 < expected["J&F-Mean"] < 1


def test_frames_keep_their_names_and_sizes_and_the_result_is_told(
    davis: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = segment(
        eval_video_segmentation.main,
        weights,
        davis,
        tmp_path,
        "--json",
        tmp_path / "r.json",
        "--bs",
        9,
    )
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["sequences"], told["frames"], told["output_dir"]) == (3, 10, str(output))
    printed = capsys.readouterr().out
    assert f"10 frames of 3 sequences are segmented in {output}" in printed and "10/10" in printed
    (tmp_path / "r.json").unlink()
    shapes = {name: labels.shape for name, labels in read_all(output).items()}
    assert (
        shapes["tall/00003.png"] == (101, 67)
        and shapes["wide/00004.png"] == (120, 213)
        and len(shapes) == 10
    )


def test_a_users_label_map_stays(davis: Path, weights: Path, tmp_path: Path) -> None:
    theirs = segment(eval_video_segmentation.main, weights, davis, tmp_path) / "wide/00004.png"
    check_own(tmp_path.rglob("*.png"))
    Image.new("L", (4, 4)).save(theirs)
    mine = theirs.read_bytes()
    with pytest.raises(OptionError, match=r"wide/00004\.png was not written by this command"):
        segment(eval_video_segmentation.main, weights, davis, tmp_path)
    assert theirs.read_bytes() == mine


@pytest.mark.parametrize("words", [("--batch_size_per_device", 3), ("--num_workers", 2)])
def test_how_frames_are_fed_does_not_matter(
    words: tuple[object, ...], davis: Path, weights: Path, on_cpu: Path, tmp_path: Path
) -> None:
    output = segment(eval_video_segmentation.main, weights, davis, tmp_path, *words)
    assert differing(read_all(output), read_all(on_cpu)) < 1e-3


def test_two_processes_write_what_one_writes(
    davis: Path, weights: Path, on_cpu: Path, tmp_path: Path
) -> None:
    words = ("--pretrained_weights", weights, "--data_path", davis, "--num_workers", 0)
    results = run_pair(tmp_path, VIDEO, *words, "--output_dir", tmp_path / "out", "--device", "cpu")
    assert [result.code for result in results] == [0, 0], results
    assert "10 frames of 3 sequences" in results[0].text
    assert differing(read_all(tmp_path / "out"), read_all(on_cpu)) == 0


def dawdle() -> None:
    """Let the second process take longer than a collective may."""
    share = rooms.share_clips

    def share_and_wait(clips: Sequence[Clip], world_size: int) -> list[list[Clip]]:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
        time.sleep(3 * int(os.environ["RANK"]))
        return share(clips, world_size)

    rooms.share_clips = share_and_wait


def test_a_process_that_is_done_waits_without_a_limit(weights: Path, tmp_path: Path) -> None:
    data = write_davis(tmp_path / "data", {"wide": (2, (64, 48)), "tall": (2, (48, 64))})
    words = (
        "--pretrained_weights",
        weights,
        "--data_path",
        data,
        "--num_workers",
        0,
        "--device",
        "cpu",
    )
    results = run_pair(
        tmp_path, VIDEO, *words, "--output_dir", tmp_path / "out", prepare=(dawdle, dawdle)
    )
    assert [result.code for result in results] == [0, 0], results
    assert len(read_all(tmp_path / "out")) == 4


@needs_card
def test_cards_write_what_the_cpu_writes(
    davis: Path, weights: Path, on_cpu: Path, tmp_path: Path
) -> None:
    words = (
        "--pretrained_weights",
        weights,
        "--data_path",
        davis,
        "--device",
        "hpu",
        "--num_workers",
        0,
    )
    alone = run_alone(
        tmp_path,
        VIDEO,
        *words,
        "--output_dir",
        tmp_path / "one",
        "--lazy_mode",
        "true",
        prepare=on_simulated_card,
    )
    cards = (on_simulated_card, on_simulated_card)
    pair = run_pair(tmp_path, VIDEO, *words, "--output_dir", tmp_path / "two", prepare=cards)
    assert [alone.code, *(result.code for result in pair)] == [0, 0, 0], [
        alone.text,
        *(r.text for r in pair),
    ]
    for name in ("one", "two"):
        assert differing(read_all(tmp_path / name), read_all(on_cpu)) < 1e-3


def write_run(
    run: Path, count: int = 5, labelled: range = range(0, 5, 2), palette: bytes | None = None
) -> Path:
    """Painted frames with the labels 3, 12 and 26."""
    for part in ("image", "segmentation"):
        (run / part).mkdir(parents=True)
    for number in range(count):
        frame, labels = paint((160, 120), number)
        frame.save(run / "image" / f"16254811{number:02}.jpg", quality=95)
        labels = Image.fromarray(np.array([26, 3, 12], dtype=np.uint8)[np.array(labels)])
        if palette:
            labels.putpalette(palette)
        if number in labelled:
            labels.save(run / "segmentation" / f"16254811{number:02}.png")
    return run


def test_runs_start_anew_from_true_labels(weights: Path, tmp_path: Path) -> None:
    """What comes after a refreshed frame is what a run gives that begins there."""
    own = bytes(range(255, -1, -1)) * 3
    write_run(tmp_path / "runs" / "image of run", palette=own)
    write_run(tmp_path / "runs" / "gray", count=2)
    words = ("--refresh_label_interval", 2, "--path_to_mae_repo", "anywhere")
    output = segment(
        eval_ipace_segmentation.main, weights, tmp_path / "runs", tmp_path / "out", *words
    )
    found = read_all(output)
    assert sorted(found) == [
        *(f"gray/16254811{n:02}.png" for n in range(2)),
        *(f"image of run/16254811{n:02}.png" for n in range(5)),
    ]
    truth = tmp_path / "runs" / "image of run" / "segmentation"
    for number in (0, 2, 4):
        name = f"16254811{number:02}.png"
        assert (found[f"image of run/{name}"] == read_label_map(truth / name).labels).all()
    assert {label for labels in found.values() for label in np.unique(labels).tolist()} == {
        3,
        12,
        26,
    }
    assert read_label_map(output / "image of run" / "1625481103.png").palette == own
    assert read_label_map(output / "gray" / "1625481101.png").palette == DRIVING_PALETTE
    rest = tmp_path / "rest"
    for part, ending in (("image", "jpg"), ("segmentation", "png")):
        (rest / part).mkdir(parents=True)
        for number in range(2, 4):
            source = tmp_path / "runs" / "image of run" / part / f"16254811{number:02}.{ending}"
            if source.exists():
                (rest / part / source.name).symlink_to(source)
    alone = read_all(segment(eval_ipace_segmentation.main, weights, rest, tmp_path / "alone"))
    assert (alone["rest/1625481103.png"] == found["image of run/1625481103.png"]).all()


@needs_card
def test_runs_are_shared_out_over_cards(weights: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    words = ("--refresh_label_interval", 2)
    expected = read_all(
        segment(eval_ipace_segmentation.main, weights, run, tmp_path / "cpu", *words)
    )
    basis = (
        "--pretrained_weights",
        weights,
        "--data_path",
        run,
        "--device",
        "hpu",
        "--num_workers",
        0,
    )
    cards = (on_simulated_card, on_simulated_card)
    pair = run_pair(
        tmp_path, DRIVING, *basis, *words, "--output_dir", tmp_path / "out", prepare=cards
    )
    assert [result.code for result in pair] == [0, 0], pair
    assert differing(read_all(tmp_path / "out"), expected) < 1e-3


def segment_elsewhere(folder: Path, script: str, card: bool, pair: bool, *words: object) -> Path:
    """Run a command on the CPU or a simulated card, in one process or two."""
    prepare, output = on_simulated_card if card else None, folder / "out"
    words = (
        *words,
        "--device",
        "hpu" if card else "cpu",
        "--num_workers",
        0,
        "--output_dir",
        output,
    )
    if pair:
        results = run_pair(folder, script, *words, prepare=(prepare, prepare))
    else:
        results = [run_alone(folder, script, *words, prepare=prepare)]
    assert {result.code for result in results} == {0}, results
    return output


ELSEWHERE = pytest.mark.parametrize(
    ("card", "pair"),
    [
        (False, True),
        pytest.param(True, False, marks=needs_card),
        pytest.param(True, True, marks=needs_card),
    ],
)


@ELSEWHERE
def test_real_runs_are_segmented_alike_everywhere_and_scored(
    card: bool, pair: bool, shared_data: Path, weights: Path, tmp_path: Path
) -> None:
    """Short links to both runs, so that processes share them; what one process on the CPU writes is
    the measure."""
    runs = tmp_path / "runs"
    for number, source in enumerate(sorted((shared_data / "ipace").iterdir())):
        for part in ("image", "segmentation"):
            link_start(source / part, runs / source.name / part, 3 - number)
    words = ("--refresh_label_interval", 2)
    expected = read_all(
        segment(eval_ipace_segmentation.main, weights, runs, tmp_path / "cpu", *words)
    )
    basis = ("--pretrained_weights", weights, "--data_path", runs, *words)
    output = segment_elsewhere(tmp_path, DRIVING, card, pair, *basis)
    assert len(expected) == 5 and differing(read_all(output), expected) < 1e-3
    told = tmp_path / "told.json"
    scoring = (
        "--dataset_path",
        runs,
        "--prediction_path",
        output,
        "--skip_refreshed",
        *words,
        "--json",
        told,
    )
    compute_segmentation_metrics.main([*map(str, scoring)])
    scores = json.loads(told.read_text())
    assert (
        scores["frames"] == 2
        and set(scores["classes"]) == {"3", "26"}
        and 0.5 < scores["mean_iou"] < 1
    )


@ELSEWHERE
def test_real_sequences_are_segmented_alike_everywhere_and_scored(
    card: bool, pair: bool, shared_data: Path, weights: Path, tmp_path: Path
) -> None:
    data = link_davis(shared_data / "davis", tmp_path / "davis", frames=3, labels=3)
    told = [tmp_path / "one.json", tmp_path / "other.json"]
    words = ("--evaluate", "--json", told[0])
    expected = read_all(
        segment(eval_video_segmentation.main, weights, data, tmp_path / "cpu", *words)
    )
    basis = ("--pretrained_weights", weights, "--data_path", data, "--evaluate", "--json", told[1])
    output = segment_elsewhere(tmp_path, VIDEO, card, pair, *basis)
    assert len(expected) == 6 and differing(read_all(output), expected) < 1e-3
    one, other = (json.loads(path.read_text())["scores"]["J&F-Mean"] for path in told)
    assert 0 < one < 1 and other == pytest.approx(one, abs=0.01)


def test_a_convnet_and_real_runs(shared_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "image").mkdir(parents=True)
    source = shared_data / "ipace" / "run_2021-07-05_roundabout"
    (run / "segmentation").symlink_to(source / "segmentation")
    for path in sorted((source / "image").iterdir())[:3]:
        (run / "image" / path.name).symlink_to(path)
    torch.manual_seed(0)
    torch.save({"teacher": build_backbone("resnet18").state_dict()}, tmp_path / "resnet.pth")
    words = ("--arch", "resnet18")
    output = segment(
        eval_ipace_segmentation.main, tmp_path / "resnet.pth", run, tmp_path / "out", *words
    )
    found = read_all(output)
    assert len(found) == 3 and {labels.shape for labels in found.values()} == {(480, 854)}
    assert all(set(np.unique(labels).tolist()) == {3, 26} for labels in found.values())


def test_void_is_not_carried_along_and_predictions_can_be_scored(
    weights: Path, tmp_path: Path
) -> None:
    """The first frame's file is its annotation as it is; a mask of 0 and 255 has an object of that
    label."""
    data = write_davis(tmp_path / "data", {"wide": (3, (64, 48))})
    folder = data / "Annotations" / "480p" / "wide"
    labels = np.array(Image.open(folder / "00000.png"))
    labels[-12:] = 255
    for number in range(3):
        Image.fromarray(labels).save(folder / f"{number:05}.png")
    told = tmp_path / "told.json"
    output = segment(
        eval_video_segmentation.main, weights, data, tmp_path / "out", "--evaluate", "--json", told
    )
    assert 0 < json.loads(told.read_text())["scores"]["J&F-Mean"] <= 1
    found = read_all(output)
    assert (found["wide/00000.png"] == labels).all()
    assert set(np.unique(found["wide/00001.png"]).tolist()) == {0, 1, 2}
    for number in range(3):
        Image.fromarray(np.where(labels, 255, 0).astype(np.uint8)).save(folder / f"{number:05}.png")
    words = (tmp_path / "mask", "--evaluate", "--json", told)
    found = read_all(segment(eval_video_segmentation.main, weights, data, *words))
    assert set(np.unique(found["wide/00002.png"]).tolist()) == {0, 255}
    scores = json.loads(told.read_text())["scores"]
    assert list(scores["objects"]) == ["wide_255"] and 0 < scores["J&F-Mean"] <= 1


@given(lengths=st.lists(st.integers(1, 99), max_size=20), world_size=st.integers(1, 8))
def test_clips_are_shared_out_by_their_frames(lengths: list[int], world_size: int) -> None:
    clips = [
        Clip(name=f"{n}", frames=(Path(),) * length, labels=Path(), palette=b"")
        for n, length in enumerate(lengths)
    ]
    hands = share_clips(clips, world_size)
    assert len(hands) == world_size and hands == share_clips(clips, world_size)
    assert sorted(clip.name for hand in hands for clip in hand) == sorted(
        clip.name for clip in clips
    )
    loads = [sum(len(clip.frames) for clip in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(lengths, default=0)
    assert max(loads) <= sum(lengths) / world_size + max(lengths, default=0)


def test_masked_autoencoders_are_read_as_they_are(weights: Path, tmp_path: Path) -> None:
    """Their file holds an encoder of our names, a decoder that does not matter, and no options that
    we know."""
    network = torch.load(weights)["teacher"]
    model = {
        **network,
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
    }
    torch.save({"model": model}, tmp_path / "mae.pth")
    run = write_run(tmp_path / "run", count=3)
    words = ("--arch", "mae", "--path_to_mae_repo", "nowhere", "--patch_size", PATCH)
    found = segment(
        eval_ipace_segmentation.main, tmp_path / "mae.pth", run, tmp_path / "mae", *words
    )
    expected = segment(eval_ipace_segmentation.main, weights, run, tmp_path / "vit")
    assert differing(read_all(found), read_all(expected)) == 0
    with pytest.raises(WeightsError, match="`arch` mae needs `pretrained_weights`"):
        torch.save({"model": {"norm.weight": torch.zeros(8)}}, tmp_path / "odd.pth")
        segment(eval_ipace_segmentation.main, tmp_path / "odd.pth", run, tmp_path / "out", *words)


def test_labels_that_are_too_small_are_told(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = write_run(tmp_path / "run", count=2)
    path = run / "segmentation" / "1625481100.png"
    with Image.open(path) as picture:
        labels = np.array(picture)
    labels[0, 0] = 7
    Image.fromarray(labels).save(path)
    segment(eval_ipace_segmentation.main, weights, run, tmp_path / "out")
    assert "run: too small for a grid of 15x20: lost label 7" in capsys.readouterr().out


def label_all(folder: Path, damage: str) -> None:
    """True labels of three frames, with one thing wrong."""
    first = Image.open(folder / "00000.png")
    first.resize((64, 47 if damage == "size" else 48)).save(folder / "00002.png")
    if damage != "middle":
        first.save(folder / "00001.png")
    if damage == "more":
        first.save(folder / "00003.png")
    if damage == "nothing":
        Image.new("L", (64, 48)).save(folder / "00000.png")


@pytest.mark.parametrize(
    ("damage", "error", "named"),
    [
        ("Annotations/480p/tall/00000.png", DataError, "tall/00000.png does not exist"),
        ("JPEGImages/480p/wide", DataError, "wide holds no frame"),
        ("broken", DataError, "00002.jpg cannot be decoded"),
        ("colour", DataError, "00000.png must be an indexed or gray 8-bit PNG label map"),
        ("onto labels", OptionError, "would overwrite the true labels"),
        ("file", OptionError, "out/tall cannot be written to"),
        ("middle", DataError, r"00001.png does not exist; .* true labels of .*00001.jpg"),
        (
            "size",
            DataError,
            r"00002.png must have the size of .*00000.png, 64x48 pixels \(got 64x47\)",
        ),
        ("nothing", DataError, "00000.png has no object"),
        ("more", DataError, "00003.png matches no frame"),
    ],
)
def test_what_is_wrong_ends_with_2_and_is_named(
    damage: str, error: type[DinoError], named: str, weights: Path, tmp_path: Path
) -> None:
    data, output = (
        write_davis(tmp_path / "data", {"tall": (1, (67, 101)), "wide": (3, (64, 48))}),
        tmp_path / "out",
    )
    frames, words = data / "JPEGImages" / "480p" / "wide", ()
    if damage == "broken":
        whole = (frames / "00002.jpg").read_bytes()
        (frames / "00002.jpg").write_bytes(whole[: len(whole) // 2])
    elif damage == "colour":
        Image.new("RGB", (67, 101)).save(data / "Annotations" / "480p" / "tall" / "00000.png")
    elif damage == "onto labels":
        output = data / "Annotations" / "480p"
    elif damage == "file":
        output.mkdir()
        (output / "tall").touch()
        weights = tmp_path / "not read yet"
    elif damage in ("middle", "size", "nothing", "more"):
        (data / "ImageSets/2017/val.txt").write_text("wide")
        label_all(data / "Annotations/480p/wide", damage)
        weights, words = tmp_path / "not read yet", ("--evaluate",)
    else:
        for path in (
            [data / damage] if (data / damage).is_file() else list((data / damage).iterdir())
        ):
            path.unlink()
    with pytest.raises(error, match=named) as caught:
        segment(eval_video_segmentation.main, weights, data, output, *words)
    assert caught.value.exit_code == 2


def test_the_constants_of_video_are_for_networks_of_imagenets() -> None:
    def choose(in_chans: int, stored: dict[str, list[float]] | None) -> tuple[float, ...]:
        network = torch.nn.Identity()
        about = {"arch": "any", "patch_size": 16, "image_size": 224}
        return choose_normalization(
            TrainedBackbone(module=network, in_chans=in_chans, normalization=stored, **about)
        ).std

    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert choose(3, None) == choose(3, imagenet) == (0.228, 0.224, 0.225)
    assert choose(3, {"mean": [0.5] * 3, "std": [0.25] * 3}) == (0.25,) * 3
    assert len(choose(1, None)) == 1
