"""Which images come in which batch, whatever workers, processes, interruptions and bad files do."""

import functools
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from dino.data import loaders, worker_signals
from dino.data.crops import (
    CropRecipe,
    Crops,
    build_rng,
    center_crop,
    cut_crops,
    random_resized_crop,
)
from dino.data.datasets import CropDataset, LabelledBatch, RandomViewDataset, Share, ViewDataset
from dino.data.decode import read_image
from dino.data.epoch_batches import EpochBatches
from dino.data.image_source import ImageSource
from dino.data.loaders import (
    TrainLoader,
    build_train_loader,
    choose_workers,
    count_cores,
    read_items,
    read_views,
)
from dino.data.sources import open_training_source
from dino.errors import DataError

RECIPE = CropRecipe(global_size=16, local_size=8, local_views=2)
COUNT = 22
ALONE = Share()
CENTER = functools.partial(center_crop, size=16)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """22 images in two class folders; every image has its own plain color."""
    root = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        path = root / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (24, 20), (index, 100, 200)).save(path)
    return open_training_source(str(root))


def build(
    source: ImageSource,
    *,
    workers: int = 0,
    batch_size: int = 4,
    share: Share = ALONE,
    **dataset: object,
) -> TrainLoader:
    crops = CropDataset(source, RECIPE, **{"seed": 5, "skip_bad": False, **dataset})
    return build_train_loader(
        crops, batch_size=batch_size, share=share, workers=workers, pin_memory=False
    )


def assert_equal_batches(one: list[Crops], two: list[Crops]) -> None:
    assert len(one) == len(two) > 0
    for left, right in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def damage(source: ImageSource, root: Path, *bad: int) -> ImageSource:
    """A copy of the source in which some files are cut short."""
    for index, name in enumerate(source.names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = source.path(index).read_bytes()
        path.write_bytes(content[:40] if index in bad else content)
    return open_training_source(str(root))


def read_error(batches: Iterator) -> str:
    """The text of the error that ends the batches; keeps no frame alive, as `pytest.raises`
    would."""
    try:
        list(batches)
    except DataError as error:
        return str(error)
    pytest.fail("the batches ended without an error")


def test_a_batch_has_fixed_shapes(source: ImageSource) -> None:
    batch = next(build(source).read(0))
    assert batch.global_pixels.shape == (4, 2, 16, 16, 3)
    assert batch.local_pixels.shape == (4, 2, 8, 8, 3)
    assert batch.global_parameters.shape[:2] == batch.local_parameters.shape[:2] == (4, 2)
    assert batch.replaced.tolist() == [0, 0, 0, 0]


def test_crops_do_not_depend_on_the_number_of_workers(source: ImageSource) -> None:
    alone = list(build(source).read(1))
    for workers in (1, 2):
        assert_equal_batches(list(build(source, workers=workers).read(1)), alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_is_the_tail_of_the_whole_one(source: ImageSource, workers: int) -> None:
    loader = build(source, workers=workers)
    whole = list(loader.read(3))
    assert len(whole) == len(loader) == COUNT // 4
    assert_equal_batches(list(loader.read(3, 2)), whole[2:])
    assert list(loader.read(3, len(loader))) == []


def test_an_epoch_that_was_left_early_does_not_leak_into_the_next(source: ImageSource) -> None:
    expected = list(build(source).read(1))
    loader = build(source, workers=2)
    next(loader.read(0))
    assert_equal_batches(list(loader.read(1)), expected)


def test_the_crops_in_a_batch_are_those_of_its_indices(source: ImageSource) -> None:
    loader = build(source)
    batch = next(loader.read(2))
    loader.batches.begin(2)
    for place, (epoch, index) in enumerate(next(iter(loader.batches))):
        expected = cut_crops(read_image(source.path(index)), RECIPE, build_rng(5, epoch, index))
        assert torch.equal(batch.global_pixels[place], expected.global_pixels)
        assert torch.equal(batch.local_parameters[place], expected.local_parameters)


def test_fewer_images_than_a_global_batch_are_refused(source: ImageSource) -> None:
    assert len(build(source, batch_size=COUNT)) == 1
    with pytest.raises(
        DataError,
        match=r"holds 22 images, less than one global batch of 24; lower `batch_size_per_",
    ):
        build(source, batch_size=12, share=Share(rank=0, world_size=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_ends_the_run_and_names_itself_and_the_way_out(
    source: ImageSource, tmp_path: Path, workers: int
) -> None:
    text = read_error(build(damage(source, tmp_path, 7), workers=workers).read(0))
    assert source.names[7] in text
    assert "`on_bad_image` skip" in text
    assert "\n" not in text


def test_a_bad_image_leaves_no_loader_behind(source: ImageSource, tmp_path: Path) -> None:
    loader = build(damage(source, tmp_path, 7), workers=1)
    read_error(loader.read(0))
    left = weakref.ref(loader)
    gc.disable()  # what only the collector frees takes torch five seconds a worker to close
    try:
        del loader
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_and_replaced_by_the_next(
    source: ImageSource, tmp_path: Path, workers: int
) -> None:
    damaged = damage(source, tmp_path, 7, 8, COUNT - 1)
    loader = build(damaged, workers=workers, batch_size=COUNT, skip_bad=True)
    [batch] = loader.read(0)
    loader.batches.begin(0)
    places = {index: place for place, (_, index) in enumerate(next(iter(loader.batches)))}
    counts = {index: int(batch.replaced[place]) for index, place in places.items()}
    assert {index: count for index, count in counts.items() if count} == {7: 2, 8: 1, COUNT - 1: 1}
    assert batch.global_pixels.shape == (COUNT, 2, 16, 16, 3)
    for index, successor in ((7, 9), (8, 9), (COUNT - 1, 0)):
        expected = cut_crops(read_image(source.path(successor)), RECIPE, build_rng(5, 0, index))
        assert torch.equal(batch.global_pixels[places[index]], expected.global_pixels)


def test_a_skipped_image_is_named_in_the_log(
    source: ImageSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = CropDataset(damage(source, tmp_path, 7), RECIPE, seed=0, skip_bad=True)
    with caplog.at_level(logging.WARNING):
        dataset[0, 6]
        assert not caplog.records
        dataset[0, 7]
    [record] = caplog.records
    assert source.names[7] in record.getMessage()
    assert record.getMessage().endswith("; skipped")


def test_nothing_but_bad_images_ends_the_run_all_the_same(
    source: ImageSource, tmp_path: Path
) -> None:
    loader = build(damage(source, tmp_path, *range(COUNT)), skip_bad=True)
    assert read_error(loader.read(0)) == "none of the 22 images can be read"


def get_workers(loader: TrainLoader) -> list:
    return loader.loader._iterator._workers


def wait_for_zombie(process: int) -> None:
    """Return when the process is dead; nobody has asked for its exit code by then."""
    while Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.01)


def test_a_killed_worker_ends_the_run_with_a_remedy(source: ImageSource) -> None:
    loader = build(source, workers=2, batch_size=1)
    batches = loader.read(0)
    next(batches)
    victim = get_workers(loader)[0].pid
    os.kill(victim, signal.SIGKILL)  # while the run computes, as it does most of the time
    wait_for_zombie(victim)
    text = read_error(batches)
    assert text.startswith("a loader process died (")
    assert text.endswith("try fewer `num_workers`")
    assert "\n" not in text


def test_a_worker_killed_with_the_lock_in_its_hands_ends_the_run_all_the_same(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_signals, "PATIENCE", 0.1)
    loader = build(source, workers=2, batch_size=1)
    batches = loader.read(0)
    next(batches)
    workers = get_workers(loader)
    # The lock that each worker takes for a moment before each batch, and that nobody gives back now.
    assert loader.loader._iterator._workers_done_event.event._cond.acquire(timeout=60)
    workers[0].kill()
    assert read_error(batches).startswith("a loader process died (")
    del loader, batches
    gc.collect()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
def test_a_signal_from_a_stranger_does_not_end_a_worker(source: ImageSource, name: str) -> None:
    expected = list(build(source).read(0))
    loader = build(source, workers=1)
    batches = loader.read(0)
    first = next(batches)
    [worker] = get_workers(loader)
    subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert_equal_batches([first, *batches], expected)
    assert worker.is_alive()


def test_the_parents_own_sigterm_ends_a_worker(source: ImageSource) -> None:
    loader = build(source, workers=1)
    list(loader.read(0))
    [worker] = get_workers(loader)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def start_run(source: ImageSource, start: str, then: str) -> subprocess.Popen:
    """A process that reads one batch, says which loaders it has and does `then`."""
    script = f"""
        import signal

        from dino.data import columns
        from dino.data.crops import CropRecipe
        from dino.data.datasets import CropDataset, Share
        from dino.data.loaders import build_train_loader
        from dino.data.sources import open_training_source

        if __name__ == "__main__":
            source = open_training_source({str(source.root)!r})
            columns.LARGE = 1
            dataset = CropDataset(source.packed(), CropRecipe(), seed=0, skip_bad=False)
            settings = {{"batch_size": 1, "share": Share(), "workers": 2, "pin_memory": False, "start": {start!r}}}
            loader = build_train_loader(dataset, **settings)
            for batch in loader.read(0):
                break
            print("left", *(worker.pid for worker in loader.loader._iterator._workers), flush=True)
            {then}
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_run_that_leaves_its_loop_early_exits(source: ImageSource, start: str) -> None:
    output, errors = start_run(source, start, "pass").communicate(timeout=120)
    assert errors == ""
    word, *workers = output.split()
    assert word == "left"
    assert len(workers) == 2
    assert not any(Path("/proc", worker).exists() for worker in workers)


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_killed_run_leaves_no_loader_behind(source: ImageSource, start: str) -> None:
    run = start_run(source, start, "signal.pause()")
    assert run.stdout is not None
    _, *workers = run.stdout.readline().split()
    run.kill()
    run.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while any(Path("/proc", worker).exists() for worker in workers):
        assert time.monotonic() < deadline, "a loader is still there"
        time.sleep(0.1)


def read_centers(dataset: ViewDataset, **settings: int) -> Iterator[LabelledBatch]:
    return read_views(dataset, **{"batch_size": 4, "workers": 0, "pin_memory": False, **settings})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_together_read_every_image_once_and_in_order(
    source: ImageSource, world_size: int, workers: int
) -> None:
    seen = []
    for rank in range(world_size):
        dataset = ViewDataset(
            source, CENTER, channels=3, share=Share(rank=rank, world_size=world_size)
        )
        batches = list(read_centers(dataset, workers=workers))
        indices = torch.cat([batch.indices for batch in batches])
        labels = torch.cat([batch.labels for batch in batches])
        assert indices.tolist() == list(range(rank, COUNT, world_size))
        assert labels.tolist() == [source.labels[index] for index in indices]
        assert len(dataset) == len(indices)
        seen += indices.tolist()
    assert sorted(seen) == list(range(COUNT))


@given(
    shapes=st.lists(st.sampled_from([(1, 2), (2, 1), (3, 3)]), max_size=30), size=st.integers(1, 5)
)
def test_batches_end_where_the_shape_of_the_views_changes(
    shapes: list[tuple[int, int]], size: int
) -> None:
    source = ImageSource(root=Path(), names=tuple(map(str, range(len(shapes)))))
    for share in (ALONE, Share(rank=1, world_size=2)):
        dataset = ViewDataset(source, CENTER, channels=3, share=share, shapes=shapes)
        batches = list(dataset.plan(size))
        assert [place for batch in batches for place in batch] == list(range(len(dataset)))
        found = [{shapes[dataset.indices[place]] for place in batch} for batch in batches]
        assert all(len(kinds) == 1 for kinds in found)
        assert all(len(batch) <= size for batch in batches)
        # No batch could have gone on: the next one has another shape, or it is full.
        following = zip(batches, found, found[1:], strict=False)
        assert all(len(batch) == size or here != there for batch, here, there in following)


def test_center_crops_are_those_of_the_files(source: ImageSource) -> None:
    dataset = ViewDataset(source, CENTER, channels=3, share=Share(rank=1, world_size=2))
    batch = next(read_centers(dataset))
    assert batch.pixels.dtype == torch.uint8
    assert torch.equal(batch.pixels[2], center_crop(read_image(source.path(5)), 16))


def test_without_class_folders_the_label_is_minus_one(source: ImageSource) -> None:
    plain = ImageSource(root=source.root, names=source.names[:3])
    dataset = ViewDataset(plain, CENTER, channels=3, share=Share())
    assert next(read_centers(dataset)).labels.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_stops_at_a_bad_image(source: ImageSource, tmp_path: Path, workers: int) -> None:
    dataset = ViewDataset(damage(source, tmp_path, 9), CENTER, channels=3, share=Share())
    text = read_error(read_centers(dataset, workers=workers))
    assert source.names[9] in text
    assert "\n" not in text


def test_the_default_number_of_workers_is_cut_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert choose_workers(None) == 8
    assert choose_workers(None, processes_here=3) == 2
    assert choose_workers(None, processes_here=64) == 1
    assert choose_workers(None, usual=4) == 4
    assert choose_workers(None, usual=0) == 0


def test_cores_that_the_device_keeps_busy_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(80)))
    assert choose_workers(None, processes_here=8, reserved=2) == 8
    assert choose_workers(None, usual=6, processes_here=8, reserved=2) == 6
    assert choose_workers(None, processes_here=40, reserved=2) == 1
    assert choose_workers(10, processes_here=8, reserved=2) == 10


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", 8),
        ("250000 100000\n", 3),
        ("20000 100000\n", 1),
        ("6400000 100000\n", 8),
        ("", 8),
    ],
)
def test_the_cores_are_those_of_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(loaders, "CPU_SHARE", tmp_path / "cpu.max")
    assert count_cores() == 8
    (tmp_path / "cpu.max").write_text(text)
    assert count_cores() == cores


@pytest.mark.parametrize(
    ("limits", "strategy", "raised"),
    [
        ((1024, 4096), "file_descriptor", []),
        ((600, 4096), "file_descriptor", [(672, 4096)]),
        ((600, -1), "file_descriptor", [(672, -1)]),
        ((600, 600), "file_system", []),
        ((-1, -1), "file_descriptor", []),
    ],
)
def test_batches_travel_as_open_files_while_there_may_be_enough(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    strategy: str,
    raised: list[tuple[int, int]],
) -> None:
    """Ten loader processes may have 10 x 2 batches of 8 tensors on their way, beside 512 other
    files."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(loaders.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(loaders.resource, "setrlimit", lambda _, new: asked.append(new))
    assert loaders.choose_sharing(10) == strategy
    assert asked == raised


class WorkerSettings(Dataset):
    """What a loader process looks like from inside."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[int, int, str]:
        return (
            torch.get_num_threads(),
            cv2.getNumThreads(),
            torch.multiprocessing.get_sharing_strategy(),
        )


@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
def test_a_worker_has_one_thread_and_the_chosen_way_of_sharing(
    monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr(loaders, "choose_sharing", lambda workers: strategy)
    assert list(read_items(WorkerSettings(), workers=1)) == [(1, 1, strategy)] * 2


def test_the_way_of_sharing_changes_no_crop(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = list(build(source).read(1))
    monkeypatch.setattr(loaders, "choose_sharing", lambda workers: "file_system")
    assert_equal_batches(list(build(source, workers=2).read(1)), alone)


def test_an_explicit_number_of_workers_is_kept() -> None:
    assert choose_workers(500, processes_here=8) == 500


def test_images_of_other_channels_come_from_arrays(tmp_path: Path) -> None:
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", np.full((12, 12, 5), index, np.uint8))
    recipe = CropRecipe(global_size=8, local_views=0, channels=5)
    dataset = CropDataset(open_training_source(str(tmp_path)), recipe, seed=0, skip_bad=False)
    loader = build_train_loader(dataset, batch_size=3, share=Share(), workers=0, pin_memory=False)
    [batch] = loader.read(0)
    assert batch.global_pixels.shape == (3, 2, 8, 8, 5)
    assert batch.local_pixels.shape == (3, 0, 96, 96, 5)
    assert sorted(batch.global_pixels.flatten(1).float().mean(1).tolist()) == [0, 1, 2]


def build_views(
    source: ImageSource, *, workers: int = 0, batch_size: int = 4, share: Share = ALONE
) -> TrainLoader:
    views = RandomViewDataset(
        source, functools.partial(random_resized_crop, size=16), channels=3, seed=5
    )
    return build_train_loader(
        views, batch_size=batch_size, share=share, workers=workers, pin_memory=False
    )


def test_random_views_are_a_function_of_seed_epoch_and_image(source: ImageSource) -> None:
    """The same images in the same batches as crops, with their labels, whatever the workers and
    processes."""
    whole = list(build_views(source).read(2))
    for batch in whole:
        for pixels, label, index in zip(*batch, strict=True):
            place = int(index)
            assert torch.equal(
                pixels,
                random_resized_crop(read_image(source.path(place)), build_rng(5, 2, place), 16),
            )
            assert int(label) == (source.labels or ())[place]
    order = EpochBatches(COUNT, 4, seed=5, share=ALONE)
    order.begin(2)
    expected = [{index for _, index in keys} for keys in order]
    assert [set(batch.indices.tolist()) for batch in whole] == expected
    assert_equal_batches(list(build_views(source, workers=2).read(2)), whole)
    halves = [
        list(build_views(source, batch_size=2, share=Share(rank=r, world_size=2)).read(2))
        for r in range(2)
    ]
    for one, *two in zip(whole, *halves, strict=True):
        assert set(one.indices.tolist()) == {
            index for half in two for index in half.indices.tolist()
        }


def test_a_random_view_of_a_bad_image_is_an_error_with_its_name(
    source: ImageSource, tmp_path: Path
) -> None:
    bad = damage(source, tmp_path, 7)
    assert bad.names[7] in read_error(build_views(bad).read(0))


@pytest.mark.parametrize("piece", [1, 3, 4, 5, 8])
def test_batches_made_in_pieces_are_the_same(source: ImageSource, piece: int) -> None:
    dataset = CropDataset(source, RECIPE, seed=5, skip_bad=False)
    settings = {"batch_size": 8, "share": ALONE, "workers": 0, "pin_memory": False}
    whole = build_train_loader(dataset, **settings)
    pieces = build_train_loader(dataset, **settings, piece=piece)
    assert len(whole) == len(pieces)
    assert_equal_batches(list(pieces.read(1, 1)), list(whole.read(1, 1)))


@pytest.mark.parametrize(
    ("pins", "found"), [(False, (False, "")), (True, (True, "")), ("hpu", (True, "hpu"))]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_torch_is_told_for_which_device_to_pin_where_the_device_says_so(
    source: ImageSource, pins: bool | str, found: tuple[bool, str], workers: int
) -> None:
    dataset = CropDataset(source, RECIPE, seed=5, skip_bad=False)
    settings = {"batch_size": 4, "share": ALONE, "workers": workers, "pin_memory": pins}
    loader = build_train_loader(dataset, **settings).loader
    assert (loader.pin_memory, loader.pin_memory_device) == found


def test_loaders_start_after_opencv_has_used_threads_in_this_process(tmp_path: Path) -> None:
    code = """
import cv2, numpy, torch
import dino
cv2.setNumThreads(4)
cv2.resize(cv2.GaussianBlur(numpy.zeros((4000, 4000, 3), numpy.uint8), (31, 31), 5), (3000, 3000))
from PIL import Image
for number in range(4):
    Image.new("RGB", (40, 40)).save(f"{number}.png")
net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
print(tuple(dino.embed(net, ".", device="cpu", num_workers=2).vectors.shape), cv2.getNumThreads())
"""
    words = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.getcwd()}, **words
    )
    assert done.stdout == "(4, 3) 4\n", done.stderr
