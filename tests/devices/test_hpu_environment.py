"""What the bridge finds when it is imported: variables, op lists where it reads them, and what came
too late."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dino.devices.hpu import environment
from dino.devices.hpu.environment import (
    GELU,
    GRADIENTS,
    LISTS,
    choose_variables,
    complete_environment,
    give_lists,
    is_refused,
    make_list_folder,
    read_own_lists,
)
from dino.devices.hpu.mode import VARIABLE, Mode
from dino.errors import DeviceError, OptionError

ROOT = Path(__file__).resolve().parents[2]
LAZY, EAGER = (
    Mode(lazy=True, compiles=False, reason=""),
    Mode(lazy=False, compiles=False, reason=""),
)
CONTENTS = dict(zip(LISTS, ("linear\nmm", "softmax"), strict=True))


@pytest.fixture(autouse=True)
def restored(monkeypatch, tmp_path):
    """Variables are as before after each test, and the current folder is a writable one."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in (VARIABLE, GELU, GRADIENTS, *LISTS, "TMPDIR"):
        os.environ.pop(name, None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("mode", "told", "value"),
    [(LAZY, None, "1"), (EAGER, None, "0"), (LAZY, "2", "2"), (LAZY, "0", "1"), (EAGER, "1", "0")],
)
def test_the_mode_is_always_written_out(mode, told, value):
    told = {} if told is None else {VARIABLE: told}
    assert choose_variables(mode, told) == {VARIABLE: value, GELU: "0", GRADIENTS: "1"}


def test_a_users_own_choices_stay():
    chosen = choose_variables(EAGER, {GELU: "1", GRADIENTS: "0"})
    assert (chosen[GELU], chosen[GRADIENTS]) == ("1", "0")


def test_the_environment_is_complete_before_the_bridge_is_there():
    complete_environment({VARIABLE: "1", LISTS[0]: "/list"}, imported=False, release=None)
    assert (os.environ[VARIABLE], os.environ[LISTS[0]]) == ("1", "/list")


WANTED = {VARIABLE: "0", GELU: "0", GRADIENTS: "1"}


@pytest.mark.parametrize(
    ("found", "release", "named"),
    [
        ({GELU: "0", GRADIENTS: "1"}, (1, 24), ()),
        ({GELU: "false", GRADIENTS: "TRUE"}, (1, 24), ()),
        ({GELU: "0"}, (1, 19), ()),  # 1.19 has the gradients' setting by itself
        ({GELU: "0"}, (1, 24), (f"{GRADIENTS}=1", "slower in the gradients of convolutions")),
        ({GRADIENTS: "1"}, (1, 24), (f"{GELU}=0", "uses the tanh form of GELU")),
        ({}, (1, 24), (f"{GELU}=0 {GRADIENTS}=1", "tanh form of GELU and is slower")),
        ({}, (1, 19), (f"{GELU}=0 was set", "tanh form of GELU;")),
    ],
)
def test_a_bridge_that_came_first_is_compared_with_what_it_found_or_took_by_itself(
    found, release, named, caplog
):
    os.environ.update(found)
    complete_environment(WANTED, imported=True, release=release)
    assert len(caplog.messages) == bool(named)
    assert all(word in caplog.messages[0] for word in named)
    assert {
        name: os.environ[name] for name in WANTED if name in os.environ
    } == found  # too late, and nobody is fooled


def test_a_bridge_that_came_before_the_jobs_cards_were_known_is_refused():
    with pytest.raises(
        DeviceError,
        match="imported before HABANA_VISIBLE_MODULES=2,6 was set; import dino before torch",
    ):
        complete_environment(
            {**WANTED, "HABANA_VISIBLE_MODULES": "2,6"}, imported=True, release=(1, 24)
        )


def test_op_lists_reach_the_bridge_as_bare_lines(tmp_path):
    os.environ["TMPDIR"] = str(tmp_path)
    given = give_lists(CONTENTS, imported=False, output_dir=None)
    assert [Path(given[name]).read_bytes() for name in LISTS] == [b"linear\nmm", b"softmax"]
    assert {Path(file).parent.parent for file in given.values()} == {
        Path(os.path.realpath(tmp_path))
    }
    assert give_lists({}, imported=False, output_dir=None) == {}


def test_a_bridge_that_came_first_must_have_read_the_same_lists(tmp_path):
    os.environ["TMPDIR"] = str(tmp_path)
    os.environ.update(give_lists(CONTENTS, imported=False, output_dir=None))
    assert give_lists(CONTENTS, imported=True, output_dir=None) == {}
    for other in ({**CONTENTS, LISTS[0]: "mm"}, {LISTS[1]: "softmax\nmm"}):
        with pytest.raises(
            DeviceError, match="imported before the op lists were given; import dino before torch"
        ):
            give_lists(other, imported=True, output_dir=None)
    del os.environ[LISTS[1]]
    with pytest.raises(DeviceError, match="imported before the op lists were given"):
        give_lists(CONTENTS, imported=True, output_dir=None)


def test_a_list_that_a_variable_names_is_read_or_refused(tmp_path):
    (tmp_path / "mine").write_text("mm\n")
    assert read_own_lists({}) == read_own_lists({LISTS[0]: ""}) == {}
    assert read_own_lists({LISTS[1]: str(tmp_path / "mine")}) == {LISTS[1]: "mm\n"}
    with pytest.raises(
        OptionError, match=f"^{LISTS[0]}={tmp_path}/nothing cannot be read .*; unset it"
    ):
        read_own_lists({LISTS[0]: str(tmp_path / "nothing")})


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        *(
            (path, True)
            for path in (
                "/root",
                "/root/tmp",
                "/var/tmp",
                "/run/user/0",
                "/dev/shm",
                "/usr/tmp",
                "/etc",
            )
        ),
        *(
            (path, False)
            for path in (
                "/tmp",
                "/home/me",
                "/opt",
                "/workspace",
                "/mnt/data",
                "/scratch",
                "/rooted",
                "/",
            )
        ),
    ],
)
def test_the_bridge_reads_no_lists_below_these_folders(path, refused):
    assert is_refused(path) is refused


def test_a_link_does_not_hide_where_a_folder_is(tmp_path):
    (tmp_path / "innocent").symlink_to("/var/tmp")
    assert is_refused(str(tmp_path / "innocent"))


def test_the_list_of_refused_folders_is_the_bridges(shared_facts):
    rules = json.loads((shared_facts / "bridge_later_autocast.json").read_text())[
        "list_file_rules_bcc5172c"
    ]
    assert {f"/{name}" for name in environment.REFUSED} == set(
        rules["banned_top_level_directories"]
    )


def test_lists_go_below_the_first_folder_that_the_bridge_reads(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("mine", "output", "here")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.chdir(folders[2])
    refused = []
    monkeypatch.setattr(environment, "is_refused", lambda path: str(path) in refused)

    def place():
        return make_list_folder(str(folders[1])).parent

    os.environ["TMPDIR"] = str(folders[0])
    assert place() == folders[0]
    refused.append(str(folders[0]))
    assert place() == Path("/tmp")
    refused.append("/tmp")
    assert place() == folders[1]
    refused.append(str(folders[1]))
    assert place() == folders[2]
    refused.append(".")
    with pytest.raises(
        DeviceError,
        match=r"it reads none below .*/root .*/var, .*; set TMPDIR to a writable folder",
    ):
        place()


def test_a_folder_that_cannot_be_written_to_is_passed_over(tmp_path):
    os.environ["TMPDIR"] = str(tmp_path / "missing")
    assert make_list_folder(None).parent == Path("/tmp")


def test_the_folder_is_its_makers_alone_and_goes_with_it(tmp_path):
    code = (
        "import os; from dino.devices.hpu.environment import make_list_folder as make\n"
        "one, two = make(None), make(None)\n"
        "if not (child := os.fork()): raise SystemExit(0)\n"  # runs what was registered for the end
        "os.waitpid(child, 0); print(one != two, oct(one.stat().st_mode & 0o777), one)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    differ, rights, folder = ended.stdout.split()
    assert (differ, rights, Path(folder).parent) == ("True", "0o700", tmp_path), ended.stderr
    assert list(tmp_path.iterdir()) == []
