"""Which cards a run gets, by hand and through Slurm."""

import pytest

from dino.doctor.modules import check_modules, choose_by_slurm, read_modules
from tests.doctor.outputs import map_output

VISIBLE = {
    **dict.fromkeys(("0", "6", "0,1", "6,7", "4, 5,6,7", "3,2,1,0", "0,1,2,3,4,5,6,7"), None),
    **dict.fromkeys(("1,2", "0,4", "0,1,2", "2,3,4,5"), False),
    **dict.fromkeys(("", "8", "0,0", "a", "0;1", "-1"), True),
}


@pytest.mark.parametrize(("chosen", "blocking"), VISIBLE.items())
def test_which_sets_of_modules_are_allowed(chosen, blocking):
    found = check_modules({"HABANA_VISIBLE_MODULES": chosen}, 2, (1, 24))
    assert [problem.blocking for problem in found] == ([] if blocking is None else [blocking])


@pytest.mark.parametrize(
    ("chosen", "generation", "bridge", "blocking"),
    [
        ("0,1,2", 3, (1, 24), [True]),
        ("0,1,2,3,4", 3, (1, 25), [True]),
        ("0", 3, (1, 24), []),
        ("0,1", 3, (1, 24), []),
        ("0,1,2", 3, (1, 23), [False]),
        ("0,1,2", 3, None, [False]),
        ("0,1,2", 2, (1, 24), [False]),
        ("0,1,2", None, (1, 24), [False]),
    ],
)
def test_odd_numbers_of_modules_on_gaudi_3(chosen, generation, bridge, blocking):
    found = check_modules({"HABANA_VISIBLE_MODULES": chosen}, generation, bridge)
    assert [problem.blocking for problem in found] == blocking
    assert all(("AssertionError" in problem.cause) == problem.blocking for problem in found)


def test_a_module_chosen_by_hand_is_one_card_for_all():
    assert "HLS_MODULE_ID=3" in check_modules({"HLS_MODULE_ID": "3"}, 2, (1, 24))[0].cause
    assert check_modules({"HLS_MODULE_ID": "3", "LOCAL_RANK": "3"}, 2, (1, 24)) == []
    assert read_modules({}) is None and read_modules({"HABANA_VISIBLE_MODULES": "4,5"}) == {4, 5}


@pytest.mark.parametrize(
    ("bridge", "said"), [((1, 24), True), (None, True), ((1, 23), False), ((1, 19), False)]
)
def test_module_0_chosen_by_hand_is_read_as_none_by_the_1_24_line(bridge, said):
    (note,) = check_modules({"HLS_MODULE_ID": "0"}, 2, bridge)
    assert (
        "treats 0 in places as if no module were set" in note.cause
    ) == said and not note.blocking


def test_the_cards_of_a_slurm_job_are_mapped_to_modules():
    environment, facts, problems = choose_by_slurm({"SLURM_JOB_GPUS": "0,3"}, map_output)
    assert environment["HABANA_VISIBLE_MODULES"] == "2,5" and problems == []
    assert "0 -> 2, 1 -> 3" in facts[0].value and "SLURM_JOB_GPUS=0,3" in facts[1].value


@pytest.mark.parametrize(
    "answer", ["", "index, module_id\n0, 2\n", "index, module_id\n0, 2\n1, N/A\n", "garbage"]
)
def test_an_incomplete_map_is_refused_as_a_run_refuses_it(answer):
    environment, facts, (problem,) = choose_by_slurm({"SLURM_JOB_GPUS": "0,1"}, lambda: answer)
    assert (
        "HABANA_VISIBLE_MODULES" not in environment
        and problem.blocking
        and "SLURM_JOB_GPUS=0,1" in problem.cause
    )
    assert (
        "HABANA_VISIBLE_MODULES" in problem.remedy
        and facts[-1].value == "SLURM_JOB_GPUS=0,1 cannot be mapped"
    )


@pytest.mark.parametrize("name", ["HABANA_VISIBLE_MODULES", "HLS_MODULE_ID"])
def test_a_choice_by_hand_wins_over_slurm_and_the_map_is_still_shown(name):
    told = {"SLURM_JOB_GPUS": "0,1", name: "7"}
    environment, facts, problems = choose_by_slurm(told, map_output)
    assert (
        environment == told
        and problems == []
        and "0 -> 2" in facts[0].value
        and f"{name} is set" in facts[1].value
    )


def test_without_a_job_nothing_is_asked():
    def ask():
        raise AssertionError

    assert choose_by_slurm({"HABANA_VISIBLE_MODULES": "1"}, ask) == (
        {"HABANA_VISIBLE_MODULES": "1"},
        [],
        [],
    )
