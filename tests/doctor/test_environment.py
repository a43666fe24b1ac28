"""Op lists are judged as the bridge reads them."""

import os

import pytest

from dino.doctor import machine
from dino.doctor.environment import check_op_list, examine_op_lists, find_refused, split_lines

LIST = "PT_HPU_AUTOCAST_FP32_OPS_LIST"


def judge(path, bridge, resolve=os.path.realpath):
    facts, problems = examine_op_lists(
        {LIST: str(path)}, bridge, machine.read_text, resolve, lambda names: []
    )
    return facts[1].value, problems


def test_op_lists_are_read_as_the_bridge_reads_them():
    assert (
        split_lines("") == []
        and split_lines("a\n\nb \r\n") == ["a", "", "b \r"]
        and split_lines("a") == ["a"]
    )
    dirty, unknown = check_op_list("LIST", ["mm", "", " mm", "add_", "foo"], lambda names: ["foo"])
    assert (
        "2 ''" in dirty.cause and "3 ' mm'" in dirty.cause and unknown.cause.endswith(": add_, foo")
    )
    assert not dirty.blocking and check_op_list("LIST", ["mm"], lambda names: []) == []
    many = check_op_list("LIST", [f"x{i}" for i in range(9)], lambda names: names)
    assert many[0].cause.endswith("x0, x1, x2, x3, x4 and 4 more")


def test_a_list_that_is_no_text_is_not_readable(tmp_path):
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    fact, (note,) = judge(tmp_path / "list", (1, 24))
    assert "not readable" in fact and not note.blocking


REFUSED = [
    f"/{name}/x/list"
    for name in "root etc usr var run lib bin sbin srv sys dev proc boot lost+found".split()
]


@pytest.mark.parametrize("path", REFUSED)
def test_folders_from_which_the_1_24_line_reads_no_lists(path):
    assert find_refused(path) == "/" + path.split("/")[1]


@pytest.mark.parametrize(
    "path",
    ["/tmp/list", "/home/root/list", "/rooted/list", "/workspace/usr/list", "/root.txt", "/opt/l"],
)
def test_folders_from_which_it_does(path):
    assert find_refused(path) is None


@pytest.mark.parametrize(
    ("bridge", "notes"), [((1, 24), 1), ((1, 25), 1), (None, 1), ((1, 23), 0), ((1, 19), 0)]
)
def test_a_list_whose_real_path_is_refused_is_named_by_its_folder(tmp_path, bridge, notes):
    (tmp_path / "list").write_text("mm\n")
    fact, problems = judge(tmp_path / "list", bridge, resolve=lambda path: "/root/list")
    assert "1 lines" in fact and "reads no list below /root" in fact and len(problems) == notes
    assert all("is below /root" in note.cause and not note.blocking for note in problems)
    assert judge(tmp_path / "list", bridge, resolve=lambda path: "/tmp/list") == (
        f"{tmp_path / 'list'}: 1 lines, instead of the bridge's own list",
        [],
    )
