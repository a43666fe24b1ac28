"""What a report says to people and to programs."""

import json

import pytest

from dino.doctor.report import Fact, Problem, Report
from dino.doctor.scrub import build_scrubber


def test_a_report_without_facts_is_a_report():
    assert Report().format() == "\nno problems found\n" and Report().as_dict() == {
        "facts": [],
        "problems": [],
    }
    assert Report(problems=[Problem("a", "b", False)]).blocking == []


def test_the_report_for_programs_keeps_the_order_and_fits_into_json(monkeypatch):
    report = Report(
        [Fact("card", "0"), Fact("card", "1\n1")], [Problem("at /home/me", "none", False)]
    )
    assert json.loads(json.dumps(report.as_dict())) == {
        "facts": [{"name": "card", "value": "0"}, {"name": "card", "value": "1 1"}],
        "problems": [{"cause": "at <path>", "remedy": "none", "blocking": False}],
    }


ENVIRONMENT = {
    "HOME": "/home/Jane Doe",
    "LISTS": "/data/My Lists/low.txt",
    "PATH": "/opt/a b/bin:/usr/bin",
    "USER": "janedoe",
    "LOGNAME": "root",
    "MASTER_ADDR": "10.1.2.3",
    "SLURMD_NODENAME": "gnode07",
    "X": "/",
}
HOSTILE = {
    "3.11.7 (/home/Jane Doe/venv/bin/python)": "3.11.7 (<path>)",
    "LIST=/data/My Lists/low.txt cannot be read": "LIST=<path> cannot be read",
    "[Errno 2] No such file: '/home/Jane Doe/x y.txt'": "[Errno 2] No such file: '<path> y.txt'",
    "in /opt/a b/bin/hl-smi, failed": "in <path>, failed",
    "~/lists/low.txt: 3 lines": "<path>: 3 lines",
    "file:///srv/secret": "file:<path>",
    "janedoe_train (pid 9) on big-host.lab.example": "<user>_train (pid 9) on <host>",
    "big-host and gnode07 at 10.1.2.3": "<host> and <host> at <host>",
    "start as root; 768MiB / 98304MiB, 2.6.0+git1, eager/compiled": (
        "start as root; 768MiB / 98304MiB, 2.6.0+git1, eager/compiled"
    ),
}


@pytest.mark.parametrize("text", HOSTILE)
def test_paths_hosts_and_users_are_taken_out(text):
    scrub = build_scrubber(ENVIRONMENT, host="big-host.lab.example", paths=("/usr/local/python",))
    assert scrub(text) == HOSTILE[text]


def test_nothing_known_is_nothing_to_take_out_but_paths():
    assert build_scrubber({}, host="")("a /b/c d") == "a <path> d"
