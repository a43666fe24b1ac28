"""Whatever `--data_path` names becomes one sorted list of images, or one line that says what is
missing."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features
from torchvision.datasets import ImageFolder

from dino.data import sources
from dino.data.demo import DemoSpec
from dino.data.image_list import name_lines
from dino.data.image_source import ImageSource
from dino.data.sources import (
    find_images,
    list_images,
    open_images,
    open_labelled_splits,
    open_online_splits,
    open_training_source,
    open_validation_images,
)
from dino.errors import DataError

NAMES = ("a.png", "b.jpg", "c c.png", "d.JPEG", "ü.png")


def fill(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Write small pictures; their content does not matter here."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return folder


def fill_splits(
    root: Path, train: tuple[str, ...], test: tuple[str, ...], validation: str = "val"
) -> Path:
    for split, classes in (("train", train), (validation, test)):
        fill(root / split, tuple(f"{name}/{number}.png" for name in classes for number in range(2)))
    return root


def test_a_flat_folder_is_sorted_and_has_no_labels(tmp_path: Path) -> None:
    source = open_training_source(str(fill(tmp_path, NAMES[::-1])))
    assert source.names == NAMES
    assert source.labels is None
    assert source.classes == ()
    assert source.path(1) == tmp_path / "b.jpg"


def test_a_nested_folder_is_walked_to_the_bottom(tmp_path: Path) -> None:
    fill(tmp_path, ("x.png", "n/y.png", "n/m/z.png"))
    source = open_training_source(str(tmp_path))
    assert sorted(source.names) == ["n/m/z.png", "n/y.png", "x.png"]
    assert source.labels is None  # a picture beside the folders: they are no classes


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", ("a.png",))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    assert open_training_source(str(tmp_path / "data")).names == ("link/a.png",)


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, ("a.png",))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "png").write_text("no extension")
    assert open_training_source(str(tmp_path)).names == ("a.png",)


def test_class_folders_give_the_names_and_labels_of_torchvision(tmp_path: Path) -> None:
    fill(tmp_path, ("cat/1.png", "ant/2.png", "ant/1.png", "ant/deep/0.png", "dog/9.png"))
    source, reference = open_training_source(str(tmp_path)), ImageFolder(str(tmp_path))
    assert [str(source.path(index)) for index in range(len(source))] == [
        path for path, _ in reference.samples
    ]
    assert source.labels == tuple(reference.targets)
    assert source.classes == tuple(reference.classes) == ("ant", "cat", "dog")


def test_the_forms_of_one_set_list_the_same_files_in_the_same_order(tmp_path: Path) -> None:
    flat = fill(tmp_path / "flat")
    nested = fill(tmp_path / "nested", tuple(f"deep/er/{name}" for name in NAMES))
    labelled = fill(tmp_path / "labelled", tuple(f"only/{name}" for name in NAMES))
    (tmp_path / "relative.txt").write_text(
        "".join(f"flat/{name}\n" for name in NAMES), encoding="utf-8"
    )
    (tmp_path / "absolute.txt").write_text(
        "".join(f"{flat / name}\n" for name in NAMES), encoding="utf-8"
    )
    for form in (flat, nested, labelled, tmp_path / "relative.txt", tmp_path / "absolute.txt"):
        source = open_training_source(str(form))
        assert tuple(source.path(index).name for index in range(len(source))) == NAMES
        assert all(source.path(index).is_file() for index in range(len(source)))


def test_a_list_file_may_hold_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "list.txt").write_bytes(b"\r\nb.jpg\r\n\r\n  a.png  \r\n\r\n")
    assert open_training_source(str(tmp_path / "list.txt")).names == (
        "b.jpg",
        "a.png",
    )  # in the order of the list


def test_a_line_that_is_no_image_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\nb.doc\n")
    with pytest.raises(DataError, match=r"list\.txt lists 'b\.doc', which is not an image name"):
        open_training_source(str(tmp_path / "list.txt"))


def test_a_picture_given_as_a_list_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, ("a.png",))
    with pytest.raises(DataError, match=r"a\.png is not a text file"):
        open_training_source(str(tmp_path / "a.png"))


def test_an_empty_list_holds_no_image(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(DataError, match="holds no image"):
        open_training_source(str(tmp_path / "list.txt"))


def test_an_empty_folder_names_itself_and_the_extensions(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"holds no image \(looked for \.jpg") as caught:
        open_training_source(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("path", [None, "", "/no/such/folder"])
def test_a_missing_path_points_to_the_demo(path: str | None) -> None:
    for read in (open_training_source, open_labelled_splits, open_online_splits):
        with pytest.raises(DataError, match="`data_path` demo") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(
        os, "scandir", refuse
    )  # root may read everything, so modes alone prove nothing
    with pytest.raises(DataError, match=r"cannot be read: .*Permission denied") as caught:
        open_training_source(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_demo_stands_for_the_embedded_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sources, "build_demo", lambda: fill_splits(tmp_path, ("a", "b"), ("a", "b"))
    )
    assert open_training_source("demo").root == tmp_path / "train"
    train, test = open_labelled_splits("demo")
    assert (len(train), len(test), train.classes) == (4, 4, ("a", "b"))


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_of_two_splits_the_train_split_is_trained_on(tmp_path: Path, validation: str) -> None:
    fill_splits(tmp_path, ("a", "b"), ("a", "b"), validation)
    assert open_training_source(str(tmp_path)).root == tmp_path / "train"
    train, test = open_labelled_splits(str(tmp_path))
    assert (train.root, test.root) == (tmp_path / "train", tmp_path / validation)
    assert train.labels == test.labels == (0, 0, 1, 1)


def test_a_class_named_train_is_no_split_without_a_validation_folder(tmp_path: Path) -> None:
    fill(tmp_path, ("train/1.png", "plane/1.png"))
    assert open_training_source(str(tmp_path)).classes == ("plane", "train")


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_the_online_score_finds_the_validation_folder_beside_the_images(
    tmp_path: Path, validation: str
) -> None:
    fill_splits(tmp_path, ("a", "b"), ("a", "b"), validation)
    for path in (tmp_path, tmp_path / "train"):
        train, test = open_online_splits(str(path), 2)
        assert (len(train), train.labels, test.root) == (2, (0, 1), tmp_path / validation)


def test_the_online_score_needs_class_folders_and_a_validation_folder(tmp_path: Path) -> None:
    for root in (fill(tmp_path / "flat"), fill(tmp_path / "classes", ("a/1.png", "b/1.png"))):
        with pytest.raises(DataError, match="`eval_knn_every` needs class folders"):
            open_online_splits(str(root))


def test_a_folder_that_is_called_demo_is_not_confused_with_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "build_demo", lambda: fill(tmp_path / "built"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "log.txt").write_text("the output of a run")
    assert open_training_source("demo").root == tmp_path / "built"
    fill(tmp_path / "demo", ("a/1.png",))
    for read in (open_training_source, open_images, open_labelled_splits):
        with pytest.raises(DataError, match="there are images in ./demo too; write ./demo for"):
            read("demo")
    assert open_training_source("./demo").names == ("a/1.png",)
    assert open_training_source(str(tmp_path / "demo")).names == ("a/1.png",)


def test_the_demo_says_that_it_is_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path))
    folder = fill(tmp_path / DemoSpec().folder_name, ("train/a/1.png", "val/a/1.png"))
    expected = f"built-in images {folder}/train, 1 images in 1 classes"
    assert open_training_source("demo").describe() == expected


@pytest.mark.parametrize("url", ["s3://bucket/train", "pipe:cat x.tar"])
def test_urls_are_no_paths(url: str) -> None:
    text = (
        "is no path on this machine; copy the images to a" if "//" not in url else "must name tar"
    )
    for read in (open_training_source, open_images, open_labelled_splits):
        with pytest.raises(DataError, match=text):
            read(url)
    with pytest.raises(DataError, match=r"^`train_features_path` .* is no path on this machine"):
        list_images(Path(url), "`train_features_path`")


def test_a_source_says_what_it_uses_and_what_not(tmp_path: Path) -> None:
    fill(tmp_path, ("ant/1.png", "bee/2.png", "bee/3.png", "ant/.4.png"))
    (tmp_path / "bee" / "5.heic").touch()
    source = open_training_source(str(tmp_path))
    assert source.describe() == (
        f"folder {tmp_path}, 3 images in 2 classes; passed over:"
        " 1 hidden or of the system (ant/.4.png), 1 .heic (bee/5.heic)"
    )
    assert (
        source.limited(2)
        .describe()
        .startswith(f"folder {tmp_path} (`data_limit` of 3), 2 images in 2 classes; passed over: ")
    )
    for name in ("ant/1.png", "bee/2.png", "bee/3.png"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"holds no image \(looked for .*; passed over: 1 hidden"):
        open_training_source(str(tmp_path))


def test_shards_beside_pictures_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, ("previews/a.png",))
    (tmp_path / "x-000.tar").touch()
    for read in (open_training_source, open_images):
        with pytest.raises(DataError, match=r"shards \(x-000.tar\) beside pictures \(previews/a"):
            read(str(tmp_path))
    (tmp_path / "x-000.tar").rename(tmp_path / "._x-000.tar")
    assert open_training_source(str(tmp_path)).names == ("previews/a.png",)


@pytest.mark.parametrize("ending", ["jpe", "jfif", "JFIF", "pnm", "pbm"])
def test_less_common_endings_are_read(tmp_path: Path, ending: str) -> None:
    kind = "jpeg" if ending.lower() in ("jpe", "jfif") else "ppm"
    Image.new("RGB", (5, 4), (200, 200, 200)).save(tmp_path / f"a.{ending}", kind)
    assert open_training_source(str(tmp_path)).read(0, 3).unique().tolist() == [200]


def test_avif_is_read_where_pillow_can(tmp_path: Path) -> None:
    (tmp_path / "a.avif").touch()
    if features.check("avif"):
        Image.new("RGB", (16, 16), (200, 200, 200)).save(tmp_path / "a.avif")
        pixels = open_training_source(str(tmp_path)).read(0, 3).float()
        assert abs(pixels.mean() - 200) < 2
    else:
        with pytest.raises(DataError, match=r"passed over: 1 .avif"):
            open_training_source(str(tmp_path))


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "pipe.tar", "x" * 5000, "x" * 5000 + ".tar"])
def test_paths_of_no_files_end_at_the_door(tmp_path: Path, name: str) -> None:
    for pipe in ("pipe", "pipe.tar"):
        os.mkfifo(tmp_path / pipe)
    for read in (open_training_source, open_images, lambda path: list_images(Path(path), "x")):
        with pytest.raises(DataError):
            read(str(tmp_path / name))
    if "pipe" not in name and name != "/dev/zero":
        with pytest.raises(DataError):
            find_images(str(tmp_path / name), "`image_path`")


def test_missing_splits_are_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        fill(tmp_path / split, (f"{split}/a/1.png",))
        with pytest.raises(DataError, match="needs the folders train and val"):
            open_labelled_splits(str(tmp_path / split))


def test_splits_without_class_folders_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train", ("a.png",))
    fill(tmp_path / "val", ("a.png",))
    with pytest.raises(DataError, match="needs one folder per class"):
        open_labelled_splits(str(tmp_path))


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    fill_splits(tmp_path, ("ant", "bee"), ("ant", "cow"))
    with pytest.raises(DataError, match="only one of them has bee, cow"):
        open_labelled_splits(str(tmp_path))


def test_the_fingerprint_follows_the_names_and_not_the_mount_point(tmp_path: Path) -> None:
    one, two = (open_training_source(str(fill(tmp_path / name))) for name in ("one", "two"))
    more = open_training_source(str(fill(tmp_path / "more", (*NAMES, "z.png"))))
    assert one.fingerprint() == two.fingerprint()
    assert len({one.fingerprint(), more.fingerprint(), one.limited(3).fingerprint()}) == 3


def test_a_name_that_is_no_utf8_has_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    try:
        (tmp_path / "a" / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    assert len(open_training_source(str(tmp_path)).fingerprint()) == 16


def build_source(sizes: list[int]) -> ImageSource:
    labels = tuple(label for label, size in enumerate(sizes) for _ in range(size))
    names = tuple(f"{label:02}/{index:05}.png" for index, label in enumerate(labels))
    classes = tuple(f"{label:02}" for label in range(len(sizes)))
    return ImageSource(root=Path("data"), names=names, labels=labels, classes=classes)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), limit=st.integers(1, 400))
def test_a_limited_source_is_evenly_spaced(sizes: list[int], limit: int) -> None:
    source = build_source(sizes)
    kept = source.limited(limit)
    places = [source.names.index(name) for name in kept.names]
    steps = {after - before for before, after in zip(places, places[1:], strict=False)}
    assert len(kept) == min(limit, len(source))
    assert places[0] == 0
    assert not steps or (min(steps) >= 1 and max(steps) - min(steps) <= 1)
    assert kept.labels == tuple(source.labels[place] for place in places)
    assert kept.classes == source.classes


@given(size=st.integers(2, 40), classes=st.integers(1, 8), share=st.floats(0.2, 1.0))
def test_a_limited_source_keeps_the_share_of_every_class(
    size: int, classes: int, share: float
) -> None:
    source = build_source([size] * classes)
    limit = max(1, int(len(source) * share))
    counts = [source.limited(limit).labels.count(label) for label in range(classes)]
    assert max(counts) - min(counts) <= 1


def test_images_of_any_flag_are_listed_and_its_name_is_in_errors(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "er")
    (tmp_path / "list.txt").write_text("deep/er/a.png\n")
    (tmp_path / "bad.txt").write_text("notes\n")
    (tmp_path / "empty").mkdir()
    assert list_images(tmp_path, "--some_path").names == tuple(f"deep/er/{name}" for name in NAMES)
    assert list_images(tmp_path / "list.txt", "--some_path").names == ("deep/er/a.png",)
    for name, text in {
        "gone": "does not exist",
        "empty": "holds no image",
        "bad.txt": "lists 'notes'",
    }.items():
        with pytest.raises(DataError, match=f"^--some_path {tmp_path / name} {text}"):
            list_images(tmp_path / name, "--some_path")


def test_selected_images_keep_their_labels_and_boxes() -> None:
    source = ImageSource(
        root=Path("x"), names=("a", "b", "c"), labels=(0, 1, 2), boxes=(None, (0, 0, 1, 1), None)
    )
    chosen = source.selected([1, 1, 0])
    assert (chosen.names, chosen.labels) == (("b", "b", "a"), (1, 1, 0))
    assert [chosen.box(index) for index in range(3)] == [(0, 0, 1, 1), (0, 0, 1, 1), None]
    assert ImageSource(root=Path("x"), names=("a",)).selected([0]).box(0) is None


def test_every_image_of_every_split_is_listed_under_its_class(tmp_path: Path) -> None:
    fill_splits(tmp_path, ("ant", "bee"), ("bee", "cat"))
    fill(tmp_path / "test" / "ant", ("x.png",))
    source = open_images(str(tmp_path))
    assert source.names[0] == "test/ant/x.png"
    assert len(source) == 9 and source.classes == ("ant", "bee", "cat")
    assert [source.classes[label] for label in source.labels or ()] == [
        name.split("/")[1] for name in source.names
    ]


def test_every_image_is_listed_whatever_the_folder_is(tmp_path: Path) -> None:
    flat, classes = fill(tmp_path / "flat"), fill(tmp_path / "classes", ("ant/a.png", "bee/b.png"))
    assert open_images(str(flat)) == open_training_source(str(flat))
    assert open_images(str(classes)) == open_training_source(str(classes))
    for split in ("train", "val"):  # splits without class folders
        fill(tmp_path / "splits" / split)
    assert len(open_images(str(tmp_path / "splits"))) == 2 * len(NAMES)
    assert open_images(str(tmp_path / "splits")).labels is None
    (tmp_path / "list.txt").write_text("flat/a.png\n")
    assert open_images(str(tmp_path / "list.txt")).names == ("flat/a.png",)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_validation_images_need_no_training_images(tmp_path: Path, validation: str) -> None:
    with pytest.raises(DataError, match="needs the folder val"):
        open_validation_images(str(tmp_path))
    fill(tmp_path / validation, ("ant/a.png", "bee/b.png"))
    assert open_validation_images(str(tmp_path)).classes == ("ant", "bee")
    fill(tmp_path / validation, ("c.png",))
    with pytest.raises(DataError, match="needs one folder per class"):
        open_validation_images(str(tmp_path))


def test_a_path_is_one_image_or_those_of_a_folder_and_its_folders(tmp_path: Path) -> None:
    fill(tmp_path, ("b.png", "a.JPG", "x/c.png", "notes.txt.png"))
    (tmp_path / "notes.txt").write_text("no image")
    names = [str(path.relative_to(tmp_path)) for path in find_images(str(tmp_path), "`image_path`")]
    assert names == ["a.JPG", "b.png", "notes.txt.png", "x/c.png"]
    assert find_images(str(tmp_path / "b.png"), "`image_path`") == (tmp_path / "b.png",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere", "does not exist: name images or folders of images$"),
        ("", r"holds no image \(looked for \.jpg"),
    ],
)
def test_a_path_without_images_is_named_with_its_flag(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError, match=rf"^`image_path` {tmp_path / name} {text}"):
        find_images(str(tmp_path / name), "`image_path`")


@pytest.mark.parametrize(
    "name",
    [
        "a\nb.png",
        "a\u2028b.png",
        " a.png",
        "\u00a0a.png",
        b"\xff.png".decode(errors="surrogateescape"),
    ],
)
def test_some_names_cannot_stand_in_a_list(name: str, tmp_path: Path) -> None:
    source = ImageSource(root=tmp_path, names=(name, f"folder/{name}"))
    assert list(name_lines(source.root, source.names, tmp_path)) == [
        None,
        f"folder/{name}" if name.strip() != name else None,
    ]


@given(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=9
    )
)
def test_a_name_that_can_stand_in_a_list_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "names"
    (root / "images").mkdir(parents=True, exist_ok=True)
    source = ImageSource(root=root / "images", names=(f"{text}.png",))
    [line] = name_lines(source.root, source.names, root)
    if line is not None:
        source.path(0).touch()
        (root / "list.txt").write_text(f"{line}\n", encoding="utf-8")
        assert open_images(str(root / "list.txt")).path(0) == root / "images" / f"{text}.png"


def test_a_list_in_a_linked_folder_leads_to_the_images(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "image.png").write_bytes(b"")
    os.symlink(tmp_path / "deep" / "er", tmp_path / "link")
    os.symlink(tmp_path, tmp_path / "deep" / "root")
    source = ImageSource(root=tmp_path / "deep" / "root", names=("image.png",))
    [line] = name_lines(source.root, source.names, tmp_path / "link")
    assert line == "../../image.png"
    (tmp_path / "link" / "list.txt").write_text(str(line))
    assert open_images(str(tmp_path / "link" / "list.txt")).path(0).samefile(tmp_path / "image.png")


def test_reading_an_image_interns_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's table of interned strings would grow with the images in every loader process."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    source = sources.open_training_source(str(tmp_path))
    interned: list[str] = []
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or text)
    assert source.read(0, 3).shape == (3, 8, 8) and source.read_size(0) == (8, 8)
    assert source.names == ("a.png",) and "a.png" not in interned
