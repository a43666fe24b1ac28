"""Questions to a machine are answered whatever is missing there."""

import os

import pytest

from dino.doctor import machine


def test_device_files_and_who_has_them_open(tmp_path):
    for name in (
        "dev/accel/accel0",
        "dev/accel/accel10",
        "dev/accel/accel_controlD0",
        "dev/hl1",
        "dev/hl_controlD1",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert machine.list_device_files(tmp_path / "dev") == [
        "/dev/hl1",
        "/dev/accel/accel0",
        "/dev/accel/accel10",
    ]
    assert machine.list_device_files(tmp_path / "none") == []
    links = {
        "7/fd/3": "/dev/accel/accel2",
        "7/fd/4": "/dev/null",
        "8/fd/0": "/dev/accel/accel_controlD0",
    }
    for name, target in {
        **links,
        f"{os.getpid()}/fd/1": "/dev/hl0",
        "self/fd/1": "/dev/hl0",
    }.items():
        (tmp_path / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / name).symlink_to(target)
    (tmp_path / "proc" / "7" / "comm").write_text("python3\n")
    (tmp_path / "proc" / "9").mkdir()
    assert machine.list_open_files(tmp_path / "proc") == {7: ("python3", ["/dev/accel/accel2"])}
    assert isinstance(machine.list_open_files(), dict)


def test_files_of_the_kernel(tmp_path):
    (tmp_path / "cmdline").write_text("quiet\n")
    assert machine.read_kernel_file("cmdline", tmp_path) == "quiet\n"
    assert machine.read_kernel_file("sys/kernel/osrelease", tmp_path) == ""
    assert machine.read_kernel_file("cmdline") != ""


def test_a_folder_that_can_be_made_may_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    assert machine.may_write(str(tmp_path)) and machine.may_write(str(tmp_path / "a" / "b"))
    assert not machine.may_write(str(tmp_path / "file")) and not machine.may_write(
        str(tmp_path / "file" / "b")
    )


def test_python_packages_by_name(tmp_path, monkeypatch):
    for name, version in {
        "opencv_python": "4.1",
        "opencv_python_headless": "4.2",
        "numpy": "2.0",
    }.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = machine.list_distributions(r"opencv-python(-headless)?")
    assert [row for row in found if row[2] == str(tmp_path)] == [
        ("opencv-python", "4.1", str(tmp_path)),
        ("opencv-python-headless", "4.2", str(tmp_path)),
    ]


@pytest.mark.parametrize(
    ("code", "answer", "error"),
    [
        ("answer = argument + 1", 42, None),
        ("answer = 1\nprint('after')", 1, None),
        ("raise RuntimeError('first\\nsecond')", None, "RuntimeError: first second"),
        ("answer = 1\nimport atexit, os; atexit.register(os.abort)", None, "killed by SIGABRT"),
        ("answer = {1}", None, "TypeError"),
        ("import os; os._exit(3)", None, "exit code 3"),
        ("pass", None, "NameError"),
    ],
)
def test_a_piece_of_python_in_a_process_of_its_own(code, answer, error):
    found = machine.probe(code, os.environ, 41, seconds=100)
    assert found[0] == answer and (found[1] == error if error is None else error in found[1])
