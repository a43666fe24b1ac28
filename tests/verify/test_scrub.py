"""No name of a host, a user or a folder leaves the machine, wherever in the report it stands."""

import getpass
import os
import socket
from pathlib import Path

import pytest

from dino.verify.scrub import build_cleaner, show_value

ENVIRONMENT = {
    "USER": "jo",
    "SUDO_USER": "Eve",
    "HOSTNAME": "gpu-node-17.lab.example",
    "MASTER_ADDR": "10.20.30.40",
    "DATA": "/data/Jo's Own Set/train",
}
HOSTILE = {
    "killed jo's job on GPU-NODE-17": "killed <user>'s job on <host>",
    "EVE asked jo_2 and johanna": "<user> asked <user>_2 and johanna",
    "ssh jo@gpu-node-17.lab.example failed": "ssh <host> failed",
    "connect to 10.20.30.40:29500, then 10.0.0.7:80": "connect to <host>, then <host>",
    "cannot read /data/Jo's Own Set/train/n01/x.png": "cannot read <path>",
    "a=~jo/lists b=~/x c=file:///srv/x": "a=<path> b=<path> c=file:<path>",
    'File "/home/jo/.venv/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 5': (
        'File "torch/nn/modules/linear.py", line 5'
    ),
    'File "/home/jo/src/dino/models/vit.py", line 7, in forward': 'File "dino/models/vit.py", line 7, in forward',
    'File "/home/jo/torch/secret.txt"': 'File "<path>"',
    "bridge 1.24.1.482 beside 2.10.0a0+gitc1e5ed4, 12/24 of f32[3,4], eager/compiled": (
        "bridge 1.24.1.482 beside 2.10.0a0+gitc1e5ed4, 12/24 of f32[3,4], eager/compiled"
    ),
}


@pytest.mark.parametrize("text", HOSTILE)
def test_names_are_taken_out_of_texts_in_any_depth(text):
    clean = build_cleaner(ENVIRONMENT)
    assert clean(text) == HOSTILE[text]
    assert clean({text: [{"deep": (text, 1, None)}]}) == {
        HOSTILE[text]: [{"deep": [HOSTILE[text], 1, None]}]
    }


def test_the_names_of_this_very_machine_are_known():
    here = f"{socket.gethostname()} {Path.home()}/x {os.getcwd()}/y"
    told = build_cleaner({})(here)
    assert told.split() == [
        "localhost" if socket.gethostname() == "localhost" else "<host>",
        "<path>",
        "<path>",
    ]
    if getpass.getuser() != "root":
        assert build_cleaner({})(getpass.getuser()) == "<user>"


@pytest.mark.parametrize(
    "value", ["0", "1", "true", "False", "0,2,5", ",false,1024,false", "all", "-1", "", "1.5"]
)
def test_numbers_and_plain_words_are_shown(value):
    assert show_value(value) == value


@pytest.mark.parametrize(
    "value", ["/home/jo/lists.txt", "jo", "gpu-node-17", "all,jo", "node[1-4]", "a=1"]
)
def test_any_other_value_is_told_by_its_length(value):
    assert show_value(value) == f"<{len(value)} characters>"
