"""Which cards of a shared Slurm node are the job's: the bridge wants modules where Slurm tells
indices."""

import pytest

from dino.devices.hpu import cards
from dino.devices.hpu.cards import choose_modules, find_modules, read_module_map
from dino.errors import DeviceError

ANSWER = (
    "index, module_id\n0, 2\n1, 6\n2, 0\n3, 4\n"  # as hl-smi writes it; the order differs by node
)
MAP = {0: 2, 1: 6, 2: 0, 3: 4}


def refuse():
    raise AssertionError("nobody should ask hl-smi")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ANSWER, MAP),
        (ANSWER.replace("\n", "\r\n"), MAP),
        ("0, 2\n1, 6\n", {0: 2, 1: 6}),
        ("0,2", {0: 2}),
        ("index, module_id\n0, N/A\n1, 6\n", {1: 6}),
        ("no AIPs available\n", {}),
        ("", {}),
    ],
)
def test_the_map_is_read_from_hl_smis_rows(text, found):
    assert read_module_map(text) == found


def test_the_map_of_the_facts_is_read(shared_facts):
    text = (shared_facts / "hl_smi_samples" / "query_csv.txt").read_text()
    assert read_module_map(text.split("$ hl-smi")[1]) == {0: 2, 1: 6}


@pytest.mark.parametrize(
    ("job", "modules"),
    [
        ("1", "6"),
        ("0,2", "2,0"),
        ("3,0", "4,2"),
        ("0-2", "2,6,0"),
        ("0-1,3", "2,6,4"),
        (" 2 ", "0"),
    ],
)
def test_the_jobs_cards_become_modules_in_their_order(job, modules):
    assert choose_modules(job, MAP) == modules


@pytest.mark.parametrize(
    ("job", "known", "named"),
    [
        (
            "4",
            MAP,
            r"SLURM_JOB_GPUS=4: .* lists no module for card 4 \(0 -> 2, 1 -> 6, 2 -> 0, 3 -> 4\)",
        ),
        ("0-4", MAP, "lists no module for card 4"),
        ("0", {}, r"lists no module for card 0 \(none\)"),
        ("0,1", {0: 3, 1: 3}, "names a module twice"),
        ("0,0", MAP, "names a module twice"),
        ("gpu:2", MAP, r"SLURM_JOB_GPUS must be a list of cards .* \(got 'gpu:2'\)"),
        ("", MAP, "must be a list of cards"),
    ],
)
def test_a_map_that_is_not_complete_is_refused_with_the_remedy(job, known, named):
    with pytest.raises(
        DeviceError,
        match=f"{named}.*; set HABANA_VISIBLE_MODULES to the modules of this job's cards",
    ):
        choose_modules(job, known)


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_JOB_GPUS": ""}, {"HABANA_VISIBLE_MODULES": "5"}]
)
def test_without_slurm_nothing_is_asked(environment, caplog):
    caplog.set_level("INFO")
    assert find_modules(environment, 0, refuse) is None
    assert caplog.messages == []


@pytest.mark.parametrize("own", ["HABANA_VISIBLE_MODULES", "HLS_MODULE_ID"])
def test_the_users_own_choice_wins_and_is_named(own, caplog):
    caplog.set_level("INFO")
    assert find_modules({"SLURM_JOB_GPUS": "0,1", own: "0"}, 0, refuse) is None
    assert caplog.messages == [f"{own}=0 decides which cards are used, not SLURM_JOB_GPUS=0,1"]


def test_the_process_of_local_rank_r_needs_an_rth_card():
    environment = {"SLURM_JOB_GPUS": "1,3"}
    assert [find_modules(environment, rank, lambda: ANSWER) for rank in (0, 1)] == ["6,4", "6,4"]
    with pytest.raises(
        DeviceError, match="process 2 on this host has no card: SLURM_JOB_GPUS=1,3 names 2"
    ):
        find_modules(environment, 2, lambda: ANSWER)


def test_hl_smi_is_run_and_its_absence_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DeviceError,
        match=r"`hl-smi -Q index,module_id -f csv` does not report .*; set HABANA_VISIBLE",
    ):
        find_modules({"SLURM_JOB_GPUS": "0"}, 0)
    tool = tmp_path / "hl-smi"
    tool.write_text(
        f'#!/bin/sh\n[ "$*" = "{" ".join(cards.QUERY[1:])}" ] && printf "index, module_id\\n0, 7\\n"\n'
    )
    tool.chmod(0o700)
    assert find_modules({"SLURM_JOB_GPUS": "0"}, 0) == "7"
