"""What an error says and which exit code belongs to it."""

import re
from pathlib import Path

import pytest

from dino import errors

ROOT = Path(__file__).resolve().parents[1]

EXIT_CODES = {
    "DinoError": 2,
    "CheckFailed": 1,
    "OptionError": 2,
    "DataError": 2,
    "CheckpointError": 2,
    "WeightsError": 2,
    "DeviceError": 2,
    "NonFiniteError": 3,
    "Interrupted": 75,
    "StoppedByCtrlC": 130,
    "PeerFailed": 2,
}


def test_exit_codes_are_frozen():
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {
        name: kind.exit_code for name, kind in kinds.items() if issubclass(kind, errors.DinoError)
    } == EXIT_CODES


def test_the_documented_table_holds_every_exit_code_and_no_other():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = text.split("## Exit codes")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", section, re.MULTILINE) == [
        *("0", "1", "2", "3", "75", "130")
    ]
    assert {0, *EXIT_CODES.values()} == {0, 1, 2, 3, 75, 130}


def test_an_error_ends_with_its_remedy_and_keeps_value_and_setting():
    error = errors.OptionError("`lr` is -1, must be >= 0", value=-1, remedy="leave it out")
    assert str(error) == "`lr` is -1, must be >= 0; leave it out"
    assert (error.setting, error.value, error.remedy) == ("lr", -1, "leave it out")


def test_the_setting_is_the_first_that_is_named_and_none_where_none_is():
    assert (
        errors.DataError("`data_path` is missing: `data_path` demo, or `init_from`").setting
        == "data_path"
    )
    assert errors.DataError("no images in `/a folder`").setting is None
    assert (errors.DataError("no images").setting, str(errors.DataError("no images"))) == (
        None,
        "no images",
    )


@pytest.mark.parametrize(
    ("word", "remedy"),
    [("vit_smal", "did you mean vit_small?"), ("q", "known are resnet50, vit_small")],
)
def test_the_remedy_for_an_unknown_word_is_the_nearest_or_all(word, remedy):
    assert errors.nearest(word, ["vit_small", "resnet50"]) == remedy
    assert errors.nearest("q", ["b", "a"], families=["letters"]) == "known are letters"
