"""A checkpoint is whole or it is not there; nothing but tensors and plain values is ever
unpickled."""

import argparse
import errno
import gzip
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dino import checkpoint
from dino.errors import CheckpointError


def make_state(number):
    weights = torch.full((3, 5), float(number))
    return {
        "student": {"module.backbone.norm.weight": weights},
        "teacher": {"backbone.norm.weight": weights + 0.5},
        "epoch": number,
        "args": {"arch": "vit_tiny", "global_crops_scale": [0.4, 1.0], "data_limit": None},
    }


def number_of(state):
    """The number a state was made with, after comparing all of it."""
    number = state["epoch"]
    expected = make_state(number)
    assert state.keys() == expected.keys()
    assert state["args"] == expected["args"]
    for network in ("student", "teacher"):
        assert state[network].keys() == expected[network].keys()
        assert all(
            torch.equal(state[network][name], tensor) for name, tensor in expected[network].items()
        )
    return number


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


class Foreign:
    """Some class of somebody's program."""


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def refuse_disk(monkeypatch, call):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)


def break_torch_save(monkeypatch, error):
    """torch.save writes some bytes and fails."""

    def fail(_state, file):
        file.write(b"PK\x03\x04 half a file")
        raise error

    monkeypatch.setattr(torch, "save", fail)


def test_what_is_saved_is_loaded_and_nothing_else_is_left(tmp_path):
    checkpoint.save_file(tmp_path / "a.pth", make_state(3))
    assert number_of(checkpoint.load_file(tmp_path / "a.pth")) == 3
    assert names_in(tmp_path) == ["a.pth"]


def test_our_files_open_with_weights_only(tmp_path):
    checkpoint.save_latest(tmp_path, make_state(1))
    assert number_of(torch.load(tmp_path / checkpoint.LATEST, weights_only=True)) == 1


def test_a_path_may_be_text(tmp_path):
    checkpoint.save_file(tmp_path / "a.pth", make_state(3))
    assert number_of(checkpoint.load_file(str(tmp_path / "a.pth"))) == 3


def test_any_mapping_is_saved_as_a_plain_dictionary(tmp_path):
    checkpoint.save_file(tmp_path / "a.pth", OrderedDict(make_state(2)))
    assert type(torch.load(tmp_path / "a.pth", weights_only=True)) is dict


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("unexpected pos 64 vs 0"), "the disk is full or failing"),
        (OSError(errno.ENOSPC, "No space left"), "No space left"),
    ],
)
def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error, reason):
    checkpoint.save_file(tmp_path / "a.pth", make_state(1))
    break_torch_save(monkeypatch, error)
    text = rf"a\.pth cannot be written .*{reason}.* free space or change `output_dir`"
    with pytest.raises(CheckpointError, match=text):
        checkpoint.save_file(tmp_path / "a.pth", make_state(2))
    assert number_of(checkpoint.load_file(tmp_path / "a.pth")) == 1
    assert names_in(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), pickle.PicklingError("a lambda")])
def test_an_interrupted_writer_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error):
    checkpoint.save_file(tmp_path / "a.pth", make_state(1))
    break_torch_save(monkeypatch, error)
    with pytest.raises(type(error)):
        checkpoint.save_file(tmp_path / "a.pth", make_state(2))
    assert number_of(checkpoint.load_file(tmp_path / "a.pth")) == 1
    assert names_in(tmp_path) == ["a.pth"]


def test_a_disk_that_fills_up_at_the_flush_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint.save_file(tmp_path / "a.pth", make_state(1))
    with monkeypatch.context() as patch:
        refuse_disk(patch, "fsync")
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoint.save_file(tmp_path / "a.pth", make_state(2))
    assert number_of(checkpoint.load_file(tmp_path / "a.pth")) == 1
    assert names_in(tmp_path) == ["a.pth"]


def test_the_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(
        os, "replace", lambda old, new: (calls.append("replace"), replace(old, new))
    )
    checkpoint.save_file(tmp_path / "a.pth", make_state(1))
    assert calls == ["fsync", "replace", "fsync"]


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere/a.pth"):
        checkpoint.save_file(tmp_path / "nowhere" / "a.pth", make_state(1))


def test_the_previous_checkpoint_is_kept(tmp_path):
    for number in range(4):
        checkpoint.save_latest(tmp_path, make_state(number))
    assert names_in(tmp_path) == [checkpoint.LATEST, checkpoint.PREVIOUS]
    assert number_of(checkpoint.load_file(tmp_path / checkpoint.LATEST)) == 3
    assert number_of(checkpoint.load_file(tmp_path / checkpoint.PREVIOUS)) == 2


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_failure_while_saving_the_latest_keeps_the_newest_good_one(tmp_path, monkeypatch, links):
    if not links:
        refuse_disk(monkeypatch, "link")
    for number in (1, 2):
        checkpoint.save_latest(tmp_path, make_state(number))
    with monkeypatch.context() as patch:
        break_torch_save(patch, OSError(errno.ENOSPC, "No space left"))
        with pytest.raises(CheckpointError, match="No space left"):
            checkpoint.save_latest(tmp_path, make_state(3))
    state, path, damaged = checkpoint.load_latest(tmp_path, set_aside=True)
    assert (number_of(state), path.name, damaged) == (2, checkpoint.LATEST, [])
    checkpoint.save_latest(tmp_path, make_state(4))
    assert number_of(checkpoint.load_file(tmp_path / checkpoint.PREVIOUS)) == 2


@pytest.mark.parametrize("failing", range(4))
def test_a_kill_between_any_two_renames_leaves_a_good_checkpoint(tmp_path, monkeypatch, failing):
    """The process dies at the n-th rename: everything it did up to there stays, nothing after it
    happens."""
    replace, count = os.replace, iter(range(100))

    def dying(old, new):
        if next(count) == failing:
            raise SystemExit
        replace(old, new)

    checkpoint.save_latest(tmp_path, make_state(0))
    monkeypatch.setattr(os, "replace", dying)
    done = 0
    with pytest.raises(SystemExit):
        for number in range(1, 5):
            checkpoint.save_latest(tmp_path, make_state(number))
            done = number
    state, _, damaged = checkpoint.load_latest(tmp_path, set_aside=False)
    assert number_of(state) in {done, done + 1}
    assert damaged == []


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.load_latest(tmp_path, set_aside=True) is None


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_newest_one_falls_back_and_is_set_aside(tmp_path, kept):
    for number in (1, 2):
        checkpoint.save_latest(tmp_path, make_state(number))
    latest = tmp_path / checkpoint.LATEST
    whole = latest.read_bytes()
    latest.unlink()
    latest.write_bytes(whole[:kept])
    state, path, damaged = checkpoint.load_latest(tmp_path, set_aside=True)
    assert (number_of(state), path.name) == (1, checkpoint.PREVIOUS)
    assert len(damaged) == 1 and str(latest) in damaged[0]
    assert names_in(tmp_path) == [f"{checkpoint.LATEST}.damaged", checkpoint.PREVIOUS]
    checkpoint.save_latest(tmp_path, make_state(5))
    assert number_of(checkpoint.load_file(tmp_path / checkpoint.PREVIOUS)) == 1


def test_a_reader_that_may_not_write_leaves_the_damaged_file_in_place(tmp_path):
    for number in (1, 2):
        checkpoint.save_latest(tmp_path, make_state(number))
    (tmp_path / checkpoint.LATEST).unlink()
    (tmp_path / checkpoint.LATEST).write_bytes(b"torn")
    state, _, _ = checkpoint.load_latest(tmp_path, set_aside=False)
    assert number_of(state) == 1
    assert names_in(tmp_path) == [checkpoint.LATEST, checkpoint.PREVIOUS]


def test_two_damaged_checkpoints_are_an_error_that_names_both(tmp_path):
    for name in (checkpoint.LATEST, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="another `output_dir`") as caught:
        checkpoint.load_latest(tmp_path, set_aside=True)
    assert checkpoint.LATEST in str(caught.value) and checkpoint.PREVIOUS in str(caught.value)
    assert names_in(tmp_path) == [checkpoint.LATEST, checkpoint.PREVIOUS]


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.pth"
    checkpoint.save_file(path, make_state(7))
    return path.read_bytes()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_at_any_byte_is_an_error_or_the_exact_state(tmp_path, whole_file, data):
    length = data.draw(st.integers(0, len(whole_file)))
    path = tmp_path / "cut.pth"
    path.write_bytes(whole_file[:length])
    try:
        state = checkpoint.load_file(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        assert length < len(whole_file)
    else:
        assert number_of(state) == 7


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, whole_file, data):
    """Nothing in a zip is without its checksum but dates and padding."""
    place = data.draw(st.integers(0, 8 * len(whole_file) - 1))
    content = bytearray(whole_file)
    content[place // 8] ^= 1 << place % 8
    path = tmp_path / "flipped.pth"
    path.write_bytes(content)
    try:
        state = checkpoint.load_file(path)
    except CheckpointError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert number_of(state) == 7


def test_a_flipped_bit_in_a_tensor_falls_back_and_names_the_record(tmp_path):
    for number in (1, 2):
        checkpoint.save_latest(tmp_path, make_state(number))
    latest = tmp_path / checkpoint.LATEST
    content = latest.read_bytes()
    weights = make_state(2)["student"]["module.backbone.norm.weight"].numpy().tobytes()
    place = content.index(weights) + 7
    latest.unlink()
    latest.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    state, path, damaged = checkpoint.load_latest(tmp_path, set_aside=True)
    assert (number_of(state), path.name) == (1, checkpoint.PREVIOUS)
    assert "Bad CRC-32 for file 'archive/data/0'" in damaged[0]
    assert checkpoint.read_mode(tmp_path) is None


def test_a_file_that_was_written_without_checksums_is_read(tmp_path):
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(make_state(3), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert number_of(checkpoint.load_file(tmp_path / "a.pth")) == 3


def test_records_that_claim_more_than_the_file_has_are_refused(tmp_path):
    """Such as a compressed record of 100 MB of zeros."""
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(10**8))
    with pytest.raises(CheckpointError, match="records claim to be larger than the file"):
        checkpoint.load_file(tmp_path / "a.pth")


OTHERS = {
    "a web page": (b"\n<!DOCTYPE html><html>Not found</html>", "web page: download the file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "gzip": (gzip.compress(b"weights"), "compressed by gzip: unpack it"),
    "tar": (b"a.pth" + bytes(252) + b"ustar\x0000" + bytes(300), "a tar archive: unpack it"),
    "safetensors": (safetensors.torch.save({"a": torch.zeros(2)}), "begins as a safetensors file"),
    "words": (b"404: Not Found", "it is a text that begins with '404: Not Found'"),
    "nothing": (b"", "it is empty"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_file_is_instead_is_said(tmp_path, name):
    content, reason = OTHERS[name]
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a.pth is damaged or not a checkpoint: .*{reason}"):
        checkpoint.load_file(tmp_path / "a.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("opening", [b"]", b"}K\x01", b"cargparse\nNamespace\n)\x81}U\x01a"])
def test_containers_that_nest_without_end_are_refused(tmp_path, opening, legacy):
    """Lists, dictionaries and objects: torch reads them, and their readers would recurse."""
    closing = {b"]": b"a", b"}": b"s", b"c": b"sb"}[opening[:1]]
    deep = opening * 2_000 + b"N" + closing * 2_000
    write_pickle(tmp_path / "c.pth", b"\x80\x02}U\x01a" + deep + b"s.", legacy=legacy)
    with pytest.raises(CheckpointError, match=r"c\.pth: it nests more than 100 levels deep"):
        checkpoint.load_file(tmp_path / "c.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no checkpoint",
        b"\x80",
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
        b"\x00" * 4096,
        pickle.dumps({}, protocol=2),
    ],
    ids=["empty", "text", "opcode", "zip magic", "png", "zeros", "plain pickle"],
)
def test_a_file_of_another_kind_is_an_error_of_one_sentence(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_file(path)
    assert str(caught.value).startswith(f"{path} is damaged or not a checkpoint: ")
    assert "weights_only=False" not in str(caught.value)


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        checkpoint.load_file(tmp_path / "a.pth")


@pytest.mark.parametrize("value", [torch.zeros(3), [1, 2], 5], ids=["tensor", "list", "number"])
def test_a_file_that_holds_no_dictionary_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=f"must hold a dictionary of tensors .got {type(value).__name__}"
    ):
        checkpoint.load_file(tmp_path / "a.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        checkpoint.load_file(tmp_path / "none.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_foreign_object_is_named_and_not_unpickled(tmp_path, zipped):
    state = {**make_state(1), "model": Foreign()}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"the pickled object \S*\.Foreign") as caught:
        checkpoint.load_file(tmp_path / "a.pth")
    assert "weights_only=False" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_never_runs(tmp_path, zipped):
    torch.save(
        {"epoch": Bomb(tmp_path / "ran")}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(CheckpointError, match="the pickled object posix.mkdir"):
        checkpoint.load_file(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_as_the_original_saves_it_is_read(tmp_path, zipped):
    args = argparse.Namespace(
        arch="vit_small", lr=0.0005, global_crops_scale=(0.4, 1.0), data_limit=None
    )
    optimizer = {
        "state": {},
        "param_groups": [{"lr": np.float64(0.1), "weight_decay": np.float32(0.5), "params": [0]}],
    }
    state = {
        "student": OrderedDict(make_state(1)["student"]),
        "epoch": 5,
        "args": args,
        "optimizer": optimizer,
    }
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    loaded = checkpoint.load_file(tmp_path / "a.pth")
    assert checkpoint.read_args(loaded) == vars(args)
    group = loaded["optimizer"]["param_groups"][0]
    assert (float(group["lr"]), float(group["weight_decay"])) == (0.1, 0.5)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.int32, np.bool_])
def test_numpy_numbers_are_read_under_either_spelling(tmp_path, module, kind):
    torch.save({"lr": kind(1)}, tmp_path / "new.pth")
    with (
        zipfile.ZipFile(tmp_path / "new.pth") as old,
        zipfile.ZipFile(tmp_path / "a.pth", "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/data.pkl"):
                spelling = next(
                    s for s in (b"numpy._core.multiarray", b"numpy.core.multiarray") if s in content
                )
                content = content.replace(spelling, module)
            new.writestr(name, content)
    value = checkpoint.load_file(tmp_path / "a.pth")["lr"]
    assert value == kind(1) and type(value) is kind


@pytest.mark.parametrize(
    ("args", "expected"),
    [({"arch": "a"}, {"arch": "a"}), (argparse.Namespace(arch="a"), {"arch": "a"}), (None, {})],
)
def test_options_are_read_from_a_dictionary_or_a_namespace(args, expected):
    assert checkpoint.read_args({"args": args}) == expected
    assert checkpoint.read_args({}) == {}


@pytest.mark.parametrize(
    ("keep", "left"),
    [(0, [0, 1, 9, 10, 200]), (1, [200]), (3, [9, 10, 200]), (9, [0, 1, 9, 10, 200])],
)
def test_numbered_copies_are_the_newest_and_old_ones_go(tmp_path, keep, left):
    for epoch in (0, 1, 9, 10, 200):
        checkpoint.save_latest(tmp_path, make_state(epoch))
        checkpoint.keep_copy(tmp_path, epoch, keep)
    names = [f"checkpoint{epoch:04}.pth" for epoch in left]
    assert names_in(tmp_path) == sorted([*names, checkpoint.LATEST, checkpoint.PREVIOUS])
    assert [number_of(checkpoint.load_file(tmp_path / name)) for name in names] == left


def test_a_numbered_copy_does_not_change_with_the_next_save(tmp_path):
    checkpoint.save_latest(tmp_path, make_state(1))
    checkpoint.keep_copy(tmp_path, 1, 0)
    checkpoint.keep_copy(tmp_path, 1, 0)
    checkpoint.save_latest(tmp_path, make_state(2))
    checkpoint.save_latest(tmp_path, make_state(3))
    assert number_of(checkpoint.load_file(tmp_path / "checkpoint0001.pth")) == 1


def test_the_best_checkpoint_stays_and_is_the_last_resort(tmp_path):
    for epoch in range(4):
        checkpoint.save_latest(tmp_path, make_state(epoch))
        if epoch == 1:
            checkpoint.keep_best(tmp_path / checkpoint.LATEST)
    assert number_of(checkpoint.load_file(tmp_path / checkpoint.BEST)) == 1
    for name in (checkpoint.LATEST, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"damaged")
    state, path, damaged = checkpoint.load_latest(tmp_path, set_aside=True)
    assert (number_of(state), path.name, len(damaged)) == (1, checkpoint.BEST, 2)
    # A kill before the next save: the run must still know the folder as its own.
    assert checkpoint.is_begun(tmp_path)
    state, path, damaged = checkpoint.load_latest(tmp_path, set_aside=True)
    assert (number_of(state), path.name, damaged) == (1, checkpoint.PREVIOUS, [])


def test_pruning_leaves_other_files_alone(tmp_path):
    (tmp_path / "checkpoint_best.pth").write_bytes(b"mine")
    for epoch in range(3):
        checkpoint.save_latest(tmp_path, make_state(epoch))
        checkpoint.keep_copy(tmp_path, epoch, 1)
    assert (tmp_path / "checkpoint_best.pth").read_bytes() == b"mine"


def test_the_mode_of_a_run_is_read_from_its_newest_whole_checkpoint(tmp_path):
    assert checkpoint.read_mode(tmp_path) is checkpoint.read_mode(tmp_path / "missing") is None
    for mode in ("lazy", "eager"):
        checkpoint.save_latest(
            tmp_path, {"student": {"w": torch.zeros(1000)}, "resume": {"mode": mode}}
        )
    assert checkpoint.read_mode(str(tmp_path)) == "eager"
    whole = (tmp_path / checkpoint.LATEST).read_bytes()
    (tmp_path / checkpoint.LATEST).write_bytes(whole[: len(whole) // 2])
    assert checkpoint.read_mode(tmp_path) == "lazy"


@pytest.mark.parametrize(
    "state", [{"epoch": 3}, {"resume": {}}, {"resume": None}, {"resume": {"mode": None}}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_says_no_mode_has_none(tmp_path, state, zipped):
    torch.save(state, tmp_path / checkpoint.LATEST, _use_new_zipfile_serialization=zipped)
    assert checkpoint.read_mode(tmp_path) is None


def write_pickle(path, content, *, legacy):
    """A file of torch.save that has this pickle in the place of its content."""
    torch.save({"a": 1}, path, _use_new_zipfile_serialization=not legacy)
    if legacy:
        original = path.read_bytes()
        path.write_bytes(original.replace(b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", content))
        assert content in path.read_bytes()
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, content if name.endswith("data.pkl") else part)


DEEP = b")" + b"\x85" * 200_000  # tuples in a tuple: hashing it overflows the C stack
SHARED = b")q\0" + b"".join(b"h%ch%c\x86q%c" % (place, place, place + 1) for place in range(60))
CRASHES = {
    "a deep tuple as a key": b"\x80\x02}" + DEEP + b"K\1s.",
    "a shared tuple as a key": b"\x80\x02}(" + SHARED + b"u.",
    "a deep tuple in a persistent id": b"\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\n"
    + DEEP
    + b"X\3\0\0\0cpuK\1tQ.",
    "a deep tuple in an ordered dictionary": b"\x80\x02ccollections\nOrderedDict\n]]("
    + DEEP
    + b"K\1ea\x85R.",
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", CRASHES)
def test_a_file_that_would_crash_the_interpreter_is_refused(tmp_path, name, legacy):
    write_pickle(tmp_path / "c.pth", CRASHES[name], legacy=legacy)
    with pytest.raises(
        CheckpointError, match=r"c\.pth is damaged or not a checkpoint: its tuples nest"
    ):
        checkpoint.load_file(tmp_path / "c.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_nested_plain_values_are_read(tmp_path, legacy):
    state = {
        "a": ((1, (2, (3,))), [(), {"b": (4,) * 1000}]),
        "weights": torch.ones(2)[::2],
        ("key", 1): None,
    }
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    assert checkpoint.load_file(tmp_path / "c.pth") == state
