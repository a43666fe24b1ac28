"""Attention videos: the original's pictures, frame after frame, in bounded memory; one line for
what cannot be."""

from __future__ import annotations

import itertools
import json
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import video_generation as script
from dino.errors import DataError, OptionError
from dino.files import MARK
from dino.models.registry import build_backbone
from dino.models.vit import VisionTransformer
from dino.visualization import attention_video
from dino.visualization.frame_source import FrameSource, open_frames
from dino.visualization.pictures import INFERNO, color, draw_heat
from dino.visualization.sheets import LINE
from dino.visualization.video import write_video
from tests import hpu_simulator
from tests.running import Job, make_images, on_simulated_card, run_alone, run_pair

TINY = ("--arch", "vit_mini", "--random_weights", "--device", "cpu")
HEADS = 3


def run_main(*words: object) -> None:
    script.main(list(map(str, words)))


def save_weights(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = build_backbone("vit_mini", patch_size=8, img_size=32)
    torch.nn.init.normal_(backbone.blocks[-1].attn.qkv.weight, std=0.15)  # maps that are not flat
    torch.save({"teacher": backbone.state_dict()}, folder / "weights.pth")
    return folder / "weights.pth"


def average_as_the_original(weights: Path, frame: Path, threshold: float | None) -> np.ndarray:
    """Mean over the heads of the CLS row of the whole matrix, where asked of the patches of each
    head's mask alone."""
    backbone = build_backbone("vit_mini", patch_size=8, img_size=32)
    backbone.load_state_dict(torch.load(weights)["teacher"])
    pixels = torch.from_numpy(np.array(Image.open(frame).convert("RGB"))).permute(2, 0, 1) / 255
    mean, std = (
        torch.tensor(x).reshape(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    view = ((pixels - mean) / std)[:, : pixels.shape[1] // 8 * 8, : pixels.shape[2] // 8 * 8]
    assert isinstance(backbone, VisionTransformer)
    with torch.no_grad():
        heads = backbone.eval().get_last_selfattention(view[None])[0, :, 0, 1:]
    if threshold is not None:
        values, index = torch.sort(heads)
        kept = torch.cumsum(values / values.sum(dim=1, keepdim=True), dim=1) > 1 - threshold
        back = torch.argsort(index)
        heads = heads * torch.stack([kept[head][back[head]] for head in range(HEADS)])
    mean_map = sum(heads[head] / HEADS for head in range(HEADS)).reshape(
        view.shape[1] // 8, view.shape[2] // 8
    )
    return mean_map.numpy()


def draw_as_the_original(weights: Path, frame: Path, threshold: float | None) -> np.ndarray:
    return color(average_as_the_original(weights, frame, threshold), INFERNO)


def count_frames(path: Path) -> int:
    return sum(1 for _ in open_frames(path).read(3))


@pytest.mark.parametrize("threshold", [None, 0.4])
@pytest.mark.parametrize("count", [1, attention_video.BATCH, attention_video.BATCH + 1])
def test_a_folder_of_frames_gives_the_originals_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float | None, count: int
) -> None:
    frames, weights, out = (
        make_images(tmp_path / "in", count, size=45),
        save_weights(tmp_path),
        tmp_path / "out",
    )
    drawn: dict[str, np.ndarray] = {}
    save = attention_video.save_picture
    monkeypatch.setattr(
        attention_video,
        "save_picture",
        lambda path, p: (drawn.update({path.name: p}), save(path, p)),
    )
    words = (
        "--input_path",
        frames,
        "--output_path",
        out,
        "--pretrained_weights",
        weights,
        "--device",
        "cpu",
    )
    run_main(*words, *(("--threshold", threshold) if threshold else ()))
    names = [f"attn-{index:03}.jpg" for index in range(count)]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        *(f"attention/{name}" for name in names),
        "video.mp4",
    ]
    for name, path in zip(names, sorted(frames.iterdir()), strict=True):
        expected = draw_as_the_original(weights, path, threshold)
        assert drawn[name].shape == (40, 40, 3)
        assert np.abs(drawn[name][4::8, 4::8].astype(int) - expected).max() <= 2
        with Image.open(out / "attention" / name) as file:
            assert file.format == "JPEG" and file.size == (40, 40)
    source = open_frames(out / "video.mp4")
    assert source.rate == 30 and count_frames(out / "video.mp4") == count
    _, last = list(source.read(3))[-1]
    title, shown = np.split(last.permute(1, 2, 0).numpy().astype(int), [LINE])
    assert title.max() > 150
    picture = np.array(Image.open(path).convert("RGB"))[:40, :40]
    heat = draw_heat(picture, average_as_the_original(weights, path, threshold))
    assert np.abs(shown[:40] - heat).mean() < 12  # half of the video's colors is lost


def test_the_threshold_changes_the_video(tmp_path: Path) -> None:
    frames, weights = make_images(tmp_path / "in", 1, size=40), save_weights(tmp_path)
    plain, masked = (
        draw_as_the_original(weights, frames / "000.png", share) for share in (None, 0.3)
    )
    assert (plain != masked).any(axis=2).sum() >= 5


def test_a_video_gives_its_frames_its_attention_and_its_speed(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = shared_data / "video" / "car-roundabout_3s_25fps.mp4"
    out = tmp_path / "new" / "out"
    words = ("--input_path", video, "--output_path", out, "--resize", 45, 67, "--patch_size", 16)
    run_main(*TINY, *words, "--video_format", "avi", "--json", "-")
    shown = capsys.readouterr().out
    assert "45 x 67 pixels are not a multiple of the patch size 16: cropped to 32 x 64" in shown
    assert "frames of car-roundabout_3s_25fps.mp4  20/75" in shown and "  75/75" in shown
    assert json.loads(shown.splitlines()[-1]) == {
        "video": str(out / "video.avi"),
        "frames": 75,
        "size": [32 + LINE, 64],
        "fps": 25.0,
    }
    assert open_frames(out / "video.avi").rate == 25 and count_frames(out / "video.avi") == 75
    assert len(list((out / "attention").glob("attn-frame-00??.jpg"))) == 75
    extracted = sorted((out / "frames").iterdir())
    assert [path.name for path in extracted] == [f"frame-{index:04}.jpg" for index in range(75)]
    first = next(open_frames(video).read(3))[1].permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(Image.open(extracted[0])).astype(int) - first).mean() < 3


def test_pictures_of_an_earlier_longer_run_go_and_nothing_else_does(tmp_path: Path) -> None:
    for count in (5, 2):
        with write_video(tmp_path / f"{count}.mp4", rate=25) as writer:
            for _ in range(count):
                writer.write(np.zeros((16, 16, 3), np.uint8))
    kept = {"attention": "notes.txt", "frames": "mine.txt"}
    for folder, name in kept.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("")
    for count in (5, 2):
        run_main(*TINY, "--input_path", tmp_path / f"{count}.mp4", "--output_path", tmp_path)
    names = {
        folder: {path.name for path in (tmp_path / folder).iterdir()} - {name}
        for folder, name in kept.items()
    }
    frames = {"frame-0000.jpg", "frame-0001.jpg"}
    assert names == {"attention": {f"attn-{name}" for name in frames}, "frames": frames}
    assert all((tmp_path / folder / name).exists() for folder, name in kept.items())
    run_main(
        *TINY, "--input_path", tmp_path / "frames", "--output_path", tmp_path
    )  # the input's own stay
    assert {path.name for path in (tmp_path / "frames").iterdir()} == {*frames, "mine.txt"}


def test_a_speed_that_is_given_wins_over_the_videos(tmp_path: Path) -> None:
    with write_video(tmp_path / "in.mp4", rate=25) as writer:
        for _ in range(3):
            writer.write(np.zeros((16, 16, 3), np.uint8))
    run_main(
        *TINY, "--input_path", tmp_path / "in.mp4", "--output_path", tmp_path / "out", "--fps", 10
    )
    assert open_frames(tmp_path / "out" / "video.mp4").rate == 10


@pytest.mark.parametrize("size", [(40, 40), (45, 33)])
def test_video_only_joins_pictures_as_they_are(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "attention").mkdir()
    for index in range(12):
        Image.new("RGB", size, (20 * index, 100, 0)).save(
            tmp_path / "attention" / f"attn-frame-{index}.jpg"
        )
    words = (
        "--video_only",
        "--input_path",
        tmp_path / "attention",
        "--output_path",
        tmp_path,
        "--fps",
        12,
    )
    run_main(*words, "--device", "cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"attention", "video.mp4"}
    source = open_frames(tmp_path / "video.mp4")
    reds = [int(frame[0, 16, 16]) for _, frame in source.read(3)]
    assert source.rate == 12 and np.abs(np.array(reds) - 20 * np.arange(12)).max() <= 12


class Tracked:
    """Makes arrays and knows how many of them are alive."""

    def __init__(self) -> None:
        self.alive, self.most = 0, 0

    def watch(self, array: np.ndarray) -> np.ndarray:
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(array, self._forget)
        return array

    def _forget(self) -> None:
        self.alive -= 1


def count_live(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """The most input frames and the most output pictures that were in memory at a time."""
    frames, pictures = Tracked(), Tracked()

    def read(channels: int, _: object) -> Iterator[tuple[str, torch.Tensor]]:
        for index in range(count):
            array = frames.watch(np.full((16, 24, channels), index % 250, np.uint8))
            yield f"{index}", torch.from_numpy(array).permute(2, 0, 1)
            del array

    source = FrameSource(path=folder, count=count, rate=None, read=read)
    add_title = attention_video.add_title
    monkeypatch.setattr(attention_video, "open_frames", lambda _: source)
    monkeypatch.setattr(
        attention_video,
        "add_title",
        lambda *values: pictures.watch(add_title(*values).copy()),
    )
    run_main(*TINY, "--input_path", folder / "in", "--output_path", folder)
    monkeypatch.undo()
    assert count_frames(folder / "video.mp4") == count and frames.alive == pictures.alive == 0
    return frames.most, pictures.most


def test_memory_does_not_depend_on_the_number_of_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (count_live(tmp_path / f"{count}", count, monkeypatch) for count in (50, 500))
    assert few == many
    assert many[0] <= 2 * attention_video.BATCH + 1 and many[1] <= 2


def test_every_batch_has_one_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, forward = [], VisionTransformer.get_last_selfattention
    monkeypatch.setattr(
        VisionTransformer,
        "get_last_selfattention",
        lambda self, images, **more: (
            shapes.append(tuple(images.shape)),
            forward(self, images, **more),
        )[1],
    )
    frames = make_images(tmp_path / "in", 2 * attention_video.BATCH + 1)
    run_main(*TINY, "--input_path", frames, "--output_path", tmp_path)
    assert shapes == [(attention_video.BATCH, 3, 16, 16)] * 3


def cut_off(folder: Path) -> Path:
    with write_video(folder / "whole.mp4", rate=25) as writer:
        for index in range(40):
            writer.write(np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8))
    content = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: 3 * len(content) // 4])
    return folder / "cut.mp4"


def mixed_sizes(folder: Path) -> Path:
    make_images(folder / "mixed", 6)
    Image.new("RGB", (32, 20)).save(folder / "mixed" / "003.png")
    return folder / "mixed"


def damaged(folder: Path) -> Path:
    make_images(folder / "damaged", 6)
    (folder / "damaged" / "005.png").write_bytes(b"no picture")
    return folder / "damaged"


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (cut_off, r"cut\.mp4 is damaged after frame \d+: Invalid data"),
        (mixed_sizes, r"003 is 16 x 32, but the frames before it are 16 x 16; set `resize` H W"),
        (damaged, r"005\.png cannot be decoded"),
    ],
)
def test_frames_that_cannot_be_read_leave_no_video(
    tmp_path: Path, prepare: Callable[[Path], Path], text: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=text):
        run_main(*TINY, "--input_path", prepare(tmp_path), "--output_path", out)
    assert [path.name for path in out.iterdir() if path.is_file()] == []
    assert all(np.asarray(Image.open(path)).size for path in (out / "attention").iterdir())


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ((), DataError, "^`input_path` is missing; give a video file or a folder of frames$"),
        (("--input_path", "nowhere"), DataError, "^`input_path` nowhere does not exist"),
        (("--input_path", "{}"), DataError, r"holds no frame \(looked for \.jpg"),
        (
            ("--input_path", "{}", "--resize", "1", "2", "3"),
            OptionError,
            "^`resize` must be .*got 3 numbers",
        ),
        (
            ("--input_path", "{}/in/000.png", "--video_only"),
            OptionError,
            "needs a folder of pictures .got the file .*; give their folder",
        ),
        (
            ("--input_path", "{}", "--video_only", "--threshold", "0.5"),
            OptionError,
            "unchanged pictures; leave out `threshold`",
        ),
        (("--input_path", "{}/out/video.mp4"), OptionError, "would be overwritten by the video"),
        (
            ("--input_path", "{}/out/attention"),
            OptionError,
            "add `video_only` to make a video of it$",
        ),
        (
            ("--input_path", "{}/in", "--arch", "resnet50"),
            OptionError,
            "^`arch` resnet50 has no attention maps",
        ),
        (
            ("--input_path", "{}/in", "--output_path", "{}/one.txt/out"),
            OptionError,
            "^`output_path` .* cannot be",
        ),
        (
            ("--input_path", "{}/in", "--json", "{}/no/a.json"),
            OptionError,
            "^`json` .* cannot be written; name a file",
        ),
        (
            ("--input_path", "{}/in", "--fps", "0"),
            OptionError,
            "^--fps must be between 0.1 and 1000",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    tmp_path: Path, words: tuple[str, ...], error: type[Exception], text: str
) -> None:
    make_images(tmp_path / "in", 1)
    Path(tmp_path / "one.txt").write_text("a file")
    with pytest.raises(error, match=text):
        run_main(
            *TINY, "--output_path", tmp_path / "out", *(word.format(tmp_path) for word in words)
        )
    assert not list((tmp_path / "out").glob("*.*"))


def test_a_killed_run_leaves_the_video_that_was_there(tmp_path: Path) -> None:
    frames, out = make_images(tmp_path / "in", 400), tmp_path / "out"
    out.mkdir()
    (out / "video.mp4").write_text(MARK)
    job = Job(
        tmp_path,
        [*TINY, "--input_path", str(frames), "--output_path", str(out)],
        script="video_generation",
    )
    while "20/400" not in job.text() and job.process.is_alive():
        time.sleep(0.01)
    job.kill(signal.SIGKILL)
    assert job.wait().code == -signal.SIGKILL
    assert (out / "video.mp4").read_text() == MARK


@pytest.mark.parametrize("name", ["video.mp4", "attention/attn-a.jpg", "frames/frame-0009.jpg"])
def test_a_users_file_stays_and_the_commands_own_are_made_again(tmp_path: Path, name: str) -> None:
    frames, out = make_images(tmp_path / "in", 2), tmp_path / "out"
    run_main("--input_path", frames, "--output_path", tmp_path / "first", "--video_only")
    video = tmp_path / "first" / "video.mp4"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    with pytest.raises(OptionError, match=rf"{name} was not written by this .*`output_path`"):
        run_main(*TINY, "--input_path", video, "--output_path", out)
    assert [path.read_text() for path in out.rglob("*") if path.is_file()] == ["mine"]
    (out / name).unlink()
    for _ in range(2):
        run_main(*TINY, "--input_path", video, "--output_path", out)


def test_two_processes_give_one_video(tmp_path: Path) -> None:
    frames = make_images(tmp_path / "in", 3)
    words = (
        "--input_path",
        frames,
        "--pretrained_weights",
        save_weights(tmp_path),
        "--device",
        "cpu",
    )
    run_main(*words, "--output_path", tmp_path / "one")
    results = run_pair(tmp_path, "video_generation", *words, "--output_path", tmp_path / "two")
    assert [result.code for result in results] == [0, 0], results
    one, two = (sorted((tmp_path / name).rglob("*.jpg")) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two] and len(
        one
    ) == 3


@pytest.mark.skipif(hpu_simulator.why_unavailable() is not None, reason="no simulated hpu")
def test_a_card_gives_the_cpus_video(tmp_path: Path, shared_data: Path) -> None:
    frames = tmp_path / "in"
    frames.mkdir()
    source = open_frames(shared_data / "video" / "car-roundabout_3s_25fps.mp4")
    for name, frame in itertools.islice(source.read(3), 5):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(frames / f"{name}.png")
    words = ("--input_path", frames, "--resize", 96, "--pretrained_weights", save_weights(tmp_path))
    run_main(*words, "--device", "cpu", "--output_path", tmp_path / "cpu")
    more = ("--device", "hpu", "--output_path", tmp_path / "hpu")
    result = run_alone(tmp_path, "video_generation", *words, *more, prepare=on_simulated_card)
    assert result.code == 0, result.text
    for host in sorted((tmp_path / "cpu" / "attention").iterdir()):
        card = np.asarray(Image.open(tmp_path / "hpu" / "attention" / host.name)).astype(int)
        assert np.abs(card - np.asarray(Image.open(host))).max() <= 8
    with av.open(str(tmp_path / "hpu" / "video.mp4")) as container:
        assert container.streams.video[0].frames == 5
