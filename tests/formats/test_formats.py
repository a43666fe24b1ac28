"""What earlier versions wrote still loads and continues, and what is written today has the same
form.

`fresh` holds what today's code writes, `frozen` what was written when the files were frozen. Form
(names, order, types, shapes, plain values) is compared exactly everywhere; numbers that kernels
compute are compared to the bit where torch and processor are those of the frozen files, and within
a tolerance elsewhere.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from dino import checkpoint
from dino.training.tags import GROUPS
from dino.visualization.run_pictures import NAMES
from tests.formats import make

METERS = (
    "loss",
    "entropy",
    "divergence",
    "feature_std",
    "centre_norm",
    "grad_norm",
)  # after the number of steps
ONE_STEP = 1e-5  # how far other kernels may be apart after one step from the same state
METER = 1e-4  # the same for what a step only reports
NINE_STEPS = 1e-2  # the same after nine steps, in which rounding grows
JSON_FILES = sorted(path.name for path in (make.FROZEN / "json").iterdir())
CHECKPOINTS = [name for name in make.KEPT if name.endswith((".pth", ".pth.tar"))]
EXACT = (
    "args/",
    "resume/identity/",
    "identity/",
    "normalisation/",
)  # plain values that no kernel has a part in
ADDED = frozenset(
    {"format", "attention", "cuda_graph", "pixel_range", "mean", "std", "hours", "hang_timeout"}
    | {"own_view_images", "own_view", "rankme", "scores", "keep_best", "draw_pictures", "log_to"}
)  # keys and flags that files have gained since; those without them must load
# Settings that say where a run took place, which the file that people publish had then.
WITHDRAWN = frozenset({"data_path", "output_dir", "dist_url", "local_rank", "executable_cache_dir"})
RENEWED = {("recompute", "nothing"): "auto"}  # defaults of then: the defaults of today
OF_WEIGHTS = "identity/backbone"  # a digest of weights, which other kernels train otherwise


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The frozen files as they were written."""
    folder = tmp_path_factory.mktemp("frozen")
    make.thaw(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the commands write today."""
    folder = tmp_path_factory.mktemp("fresh")
    make.make_all(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def place(frozen: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with the data and the frozen teacher, for commands that go on from frozen files."""
    folder = tmp_path / "place"
    make.prepare(folder)
    copy(frozen, folder, "run/teacher_backbone.pth")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def same_machine() -> bool:
    """Whether kernels give the frozen files' bits here."""
    return json.loads((make.FROZEN / make.MACHINE).read_text()) == make.describe_machine()


def copy(frozen: Path, folder: Path, name: str, new: str | None = None) -> None:
    (folder / (new or name)).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(frozen / name, folder / (new or name))


def load(path: Path) -> Any:
    return drop(torch.load(path, map_location="cpu", weights_only=True), list_changed(path))


def read_json(path: Path) -> Any:
    return drop(json.loads(path.read_text()), list_changed(path))


def list_changed(path: Path) -> frozenset[str]:
    """Names that only the files of today or those of then have."""
    return ADDED | WITHDRAWN if "teacher_backbone" in path.name else ADDED


def drop(value: Any, names: frozenset[str]) -> Any:
    """A nested container without these keys, and in lists without these names, and with the
    defaults of today."""
    if isinstance(value, dict):
        return {
            key: RENEWED.get((key, part), part) if isinstance(part, str) else drop(part, names)
            for key, part in value.items()
            if key not in names
        }
    if isinstance(value, list):
        return [
            drop(part, names) for part in value if not (isinstance(part, str) and part in names)
        ]
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [drop(json.loads(line), ADDED) for line in path.read_text().splitlines()]


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested containers with its path, in order; empty containers are leaves."""
    pairs = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if is_row(value) else ()
    )
    if not pairs:
        yield path, value
    for key, part in pairs:
        yield from walk(part, f"{path}/{key}" if path else str(key))


def is_row(value: Any) -> bool:
    return isinstance(value, list | tuple)


def describe(path: str, leaf: Any) -> str:
    """The part of a leaf that is its form: a float's value only where no kernel computes it."""
    if isinstance(leaf, torch.Tensor):
        return f"{leaf.dtype} {tuple(leaf.shape)}"
    plain = path.startswith(EXACT) or not isinstance(leaf, float)
    return repr(leaf) if plain and path != OF_WEIGHTS else type(leaf).__name__


def list_form(state: Any) -> list[str]:
    return [f"{path}: {describe(path, leaf)}" for path, leaf in walk(state)]


def measure_distance(found: Any, expected: Any) -> float:
    """Largest difference, over the expected number where that is above 1."""
    one, other = (torch.as_tensor(value, dtype=torch.float64) for value in (found, expected))
    return float(((one - other).abs() / other.abs().clamp_min(1)).max()) if one.numel() else 0.0


def assert_same_numbers(
    found: Any, expected: Any, *, exact: bool, within: Mapping[str, float] | float
) -> None:
    """Compare every number of two nested containers of one form; `within` may tell tolerances by
    the path's start."""
    limits = within if isinstance(within, Mapping) else {"": within}
    for (path, value), (_, wanted) in zip(walk(found), walk(expected), strict=True):
        if not isinstance(wanted, torch.Tensor | float) or (
            isinstance(wanted, float) and math.isnan(wanted)
        ):
            continue
        limit = (
            0.0
            if exact
            else next(limit for start, limit in limits.items() if path.startswith(start))
        )
        assert measure_distance(value, wanted) <= limit, path


@pytest.mark.long
def test_the_same_files_are_written(fresh: Path) -> None:
    since = {"run/teacher_backbone.safetensors"} | {f"run/{name}.png" for name in NAMES}
    written = (fresh / make.FILES).read_text().split()
    assert since < set(written)
    assert [name for name in written if name not in since] == (
        make.FROZEN / make.FILES
    ).read_text().split()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_fresh_checkpoint_has_the_frozen_form(name: str, fresh: Path, frozen: Path) -> None:
    assert list_form(load(fresh / name)) == list_form(load(frozen / name))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_fresh_checkpoint_has_the_frozen_numbers(
    name: str, fresh: Path, frozen: Path, same_machine: bool
) -> None:
    found, expected = load(fresh / name), load(frozen / name)
    assert_same_numbers(found, expected, exact=same_machine, within=NINE_STEPS)


def test_the_checkpoint_has_the_keys_that_users_know(fresh: Path) -> None:
    """By hand, so that no mistake in making the frozen files can hide one here."""
    state = load(fresh / "run/checkpoint.pth")
    assert list(state) == [
        *("student", "teacher", "optimizer", "epoch", "args", "dino_loss"),
        *("normalisation", "resume"),
    ]
    assert list(state["dino_loss"]) == ["center"]
    raw = checkpoint.load_file(fresh / "run/checkpoint.pth")
    assert list(raw["normalisation"]) == ["mean", "std"]
    resume = state["resume"]
    assert list(resume) == ["identity", "program", "bad_images", "unfinished", "mode"]
    assert list(resume["program"]) == ["non_finite", "meters"]
    identity = {"iteration": 9, "iterations": 3, "world": 1, "global_batch": 4, "images": 12}
    assert list(resume["identity"].items())[:-1] == list(identity.items())
    assert list(resume["identity"])[-1] == "fingerprint"
    assert all(name.startswith("module.") for name in state["student"])


@pytest.mark.parametrize("folder", ["fresh", "frozen"])
def test_meters_are_in_the_order_of_the_log(folder: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(folder) / "run"
    steps, *sums = load(run / "checkpoint.pth")["resume"]["program"]["meters"].tolist()
    last = read_lines(run / "log.txt")[-1]
    assert steps == 3 and len(sums) == len(METERS)
    assert [last[f"train_{name}"] for name in METERS] == pytest.approx(
        [total / steps for total in sums]
    )


def test_training_resumes_from_the_frozen_checkpoint(
    place: Path, frozen: Path, same_machine: bool
) -> None:
    """One iteration from inside an epoch to its end, with the same command."""
    copy(frozen, place, "run/checkpoint_previous.pth", "run/checkpoint.pth")
    copy(frozen, place, "run/log.txt")
    make.run(place, make.TRAIN)
    for name in ("checkpoint.pth", "teacher_backbone.pth"):
        found, expected = load(place / "run" / name), load(frozen / "run" / name)
        assert list_form(found) == list_form(expected)
        assert_same_numbers(
            found,
            expected,
            exact=same_machine,
            within={"resume/program/meters": METER, "": ONE_STEP},
        )
    assert (place / "run/checkpoint_previous.pth").read_bytes() == (
        frozen / "run/checkpoint_previous.pth"
    ).read_bytes()
    found, expected = read_lines(place / "run/log.txt"), read_lines(frozen / "run/log.txt")
    assert found[:2] == expected[:2] and list_form(found) == list_form(expected)
    assert_same_numbers(found[2], expected[2], exact=same_machine, within=METER)


def test_one_step_moves_far_more_than_the_tolerance(frozen: Path) -> None:
    """Or else the test before this one would pass without a step."""
    before, after = (
        load(frozen / "run" / name) for name in ("checkpoint_previous.pth", "checkpoint.pth")
    )
    moved = [
        measure_distance(after["student"][name], tensor)
        for name, tensor in before["student"].items()
    ]
    trained = [
        distance
        for name, distance in zip(before["student"], moved, strict=True)
        if "weight_g" not in name
    ]
    assert min(trained) > 10 * ONE_STEP


@pytest.mark.parametrize("name", ["run/log.txt", "linear/log.txt", "linear_continued/log.txt"])
def test_log_lines_have_the_frozen_keys(
    name: str, fresh: Path, frozen: Path, same_machine: bool
) -> None:
    found, expected = read_lines(fresh / name), read_lines(frozen / name)
    assert list_form(found) == list_form(expected)
    assert_same_numbers(found, expected, exact=same_machine, within=0.1)


@pytest.mark.parametrize("name", ["run/recipe.yaml", "linear/recipe.yaml"])
def test_recipes_have_the_frozen_keys_and_values(name: str, fresh: Path, frozen: Path) -> None:
    found, expected = (
        drop(yaml.safe_load((folder / name).read_text()), ADDED) for folder in (fresh, frozen)
    )
    assert list(found.items()) == list(expected.items())


def test_tensorboard_has_the_frozen_tags_and_steps(fresh: Path, frozen: Path) -> None:
    found, expected = (read_json(folder / make.TAGS) for folder in (fresh, frozen))
    run = found["run/tensorboard"]
    for tag, group in GROUPS.items():  # the groups came later
        assert run.pop(group, None) == run.get(tag) or tag in ADDED
    assert found == expected


def describe_json(value: Any) -> Any:
    """Keys and types of a JSON value at any depth; of a list the different forms that its elements
    have."""
    if isinstance(value, dict):
        return {key: describe_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(describe_json(part), sort_keys=True) for part in value})
    return type(value).__name__


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_has_the_frozen_keys(name: str, fresh: Path, frozen: Path) -> None:
    found, expected = (read_json(folder / "json" / name) for folder in (fresh, frozen))
    assert describe_json(found) == describe_json(expected)


@pytest.mark.parametrize("name", ["val.npz", "layers.npz"])
def test_feature_archives_have_the_frozen_arrays(
    name: str, fresh: Path, frozen: Path, same_machine: bool
) -> None:
    with (
        np.load(fresh / "features" / name) as found,
        np.load(frozen / "features" / name) as expected,
    ):
        assert found.files == expected.files
        for array in expected.files:
            assert (found[array].dtype, found[array].shape) == (
                expected[array].dtype,
                expected[array].shape,
            )
            if expected[array].dtype != np.float32:
                assert found[array].tolist() == expected[array].tolist()
            else:
                assert measure_distance(found[array], expected[array]) <= (
                    0 if same_machine else 0.1
                )


def describe_safetensors(path: Path) -> list[Any]:
    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no dictionary
        form = [(name, array.dtype, array.shape) for name, array in arrays.items()]
        return [*form, file.metadata(), arrays["labels"].tolist()]


def describe_parquet(path: Path) -> list[Any]:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    plain = [table[name].to_pylist() for name in ("name", "label", "class")]
    return [[(field.name, str(field.type), field.metadata) for field in table.schema], *plain]


def describe_table(path: Path) -> list[list[str]]:
    """A head and the first column, which are no numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return [head, [row[0] for row in rows]]


DESCRIBE = {
    "features/val.safetensors": describe_safetensors,
    "features/val.parquet": describe_parquet,
    **dict.fromkeys(("features/val.csv", "tables/davis.csv", "tables/driving.csv"), describe_table),
    **dict.fromkeys(
        ("packed/train.json", "clean.txt", "hf/config.json", "hf/preprocessor_config.json"),
        Path.read_text,
    ),
}


@pytest.mark.parametrize("name", DESCRIBE)
def test_other_files_have_the_frozen_form(name: str, fresh: Path, frozen: Path) -> None:
    assert DESCRIBE[name](fresh / name) == DESCRIBE[name](frozen / name)


def test_the_frozen_teacher_gives_the_frozen_features(
    place: Path, frozen: Path, same_machine: bool
) -> None:
    make.run(place, make.EXTRACT_FEATURES)
    with (
        np.load(place / "features/val.npz") as found,
        np.load(frozen / "features/val.npz") as expected,
    ):
        distance = measure_distance(found["features"], expected["features"])
        assert distance <= (0 if same_machine else ONE_STEP)


def test_frozen_knn_features_are_read(place: Path, frozen: Path) -> None:
    shutil.copytree(frozen / "knn", place / "knn")
    make.run(place, make.KNN_LOADED)
    found, expected = (read_json(folder / "json/knn_loaded.json") for folder in (place, frozen))
    assert found == expected


def test_the_frozen_linear_layer_is_continued(
    place: Path, frozen: Path, same_machine: bool
) -> None:
    shutil.copytree(frozen / "linear", place / "linear_continued")
    make.run(place, make.LINEAR_CONTINUED)
    name = "linear_continued/checkpoint.pth.tar"
    found, expected = load(place / name), load(frozen / name)
    assert list_form(found) == list_form(expected)
    assert found["identity"] == expected["identity"]
    assert_same_numbers(found, expected, exact=same_machine, within=1e-3)
    first, _ = read_lines(place / "linear_continued/log.txt")
    assert first == read_lines(frozen / "linear/log.txt")[0]


def test_the_frozen_linear_layer_is_scored(place: Path, frozen: Path, same_machine: bool) -> None:
    copy(frozen, place, "linear/checkpoint.pth.tar")
    make.run(place, make.LINEAR_SCORED)
    found, expected = (
        read_json(folder / "json/linear_evaluate.json") for folder in (place, frozen)
    )
    assert list_form(found) == list_form(expected)
    assert_same_numbers(found, expected, exact=same_machine, within=1e-3)


def test_the_frozen_checkpoint_is_described_as_it_was(place: Path, frozen: Path) -> None:
    copy(frozen, place, "run/checkpoint.pth")
    make.run(place, make.INSPECT)
    found, expected = (read_json(folder / "json/inspect.json") for folder in (place, frozen))
    assert found == expected


def test_the_frozen_checkpoint_becomes_the_frozen_ipu_checkpoint(place: Path, frozen: Path) -> None:
    copy(frozen, place, "run/checkpoint.pth")
    make.run(place, make.TO_IPU)
    found, expected = load(place / "ipu/checkpoint.pth"), load(frozen / "ipu/checkpoint.pth")
    assert list_form(found) == list_form(expected)
    assert_same_numbers(found, expected, exact=True, within=0)


def test_the_frozen_ipu_checkpoint_becomes_the_frozen_checkpoint(place: Path, frozen: Path) -> None:
    copy(frozen, place, "ipu/checkpoint.pth")
    make.run(place, make.FROM_IPU)
    found, expected = load(place / "ipu/back.pth"), load(frozen / "run/checkpoint.pth")
    for part in ("student", "teacher", "dino_loss"):
        assert list_form(found[part]) == list_form(expected[part])
        assert_same_numbers(found[part], expected[part], exact=True, within=0)
    for number, state in expected["optimizer"]["state"].items():
        assert_same_numbers(
            {name: found["optimizer"]["state"][number][name] for name in state},
            state,
            exact=True,
            within=0,
        )
    assert found["epoch"] == expected["epoch"]


def test_the_frozen_backbone_is_extracted(place: Path, frozen: Path) -> None:
    copy(frozen, place, "run/checkpoint.pth")
    make.run(place, make.EXTRACT_WEIGHTS)
    found = load(place / "vit_model.pth")
    teacher = load(frozen / "run/teacher_backbone.pth")["teacher"]
    expected = {name.removeprefix("backbone."): tensor for name, tensor in teacher.items()}
    assert list_form(found) == list_form(expected)
    assert_same_numbers(found, expected, exact=True, within=0)


def test_the_frozen_files_are_few_and_small() -> None:
    assert sum(path.stat().st_size for path in make.FROZEN.rglob("*") if path.is_file()) < 1_500_000
