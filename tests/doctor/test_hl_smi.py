"""What hl-smi printed becomes cards, holders and what is wrong with them."""

import re
from pathlib import Path

import pytest

from dino.devices.hpu.cards import read_module_map
from dino.doctor.hl_smi import (
    QUERY,
    Card,
    Holder,
    check_cards,
    find_driver,
    find_free,
    holders_of_files,
    parse_query,
    parse_table,
)
from tests.doctor.outputs import SHAPES, query_output, table_output

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "facts" / "hl_smi_samples"


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_that_was_seen_is_understood(shape):
    text, cards, holders = SHAPES[shape]
    found = parse_table(text)
    assert [(card.index, card.name, card.driver, card.used) for card in found[0]] == cards
    assert found[1] == [Holder(*holder) for holder in holders]


# Of each stored sample: cards, the first one's board, the driver, holders, and the cards that seem
# free.
STORED = {
    "1_18_HL-325_one_card_no_process_part.txt": (1, "HL-325", "1.18.0-0a1b2c3", {}, [0]),
    "1_20_HL-225_driver_older_perf_NA.txt": (2, "HL-225", "1.19.1-0a1b2c3", {}, [0]),
    "1_21_HL-225_eight_busy_processes_hidden.txt": (8, "HL-225", "1.21.1-0a1b2c3", {}, [1]),
    "1_21_HL-325L_container_newer_than_driver.txt": (2, "HL-325L", "1.20.1-0a1b2c3", {}, [0, 1]),
    "1_23_HL-288E_two_cards.txt": (2, "HL-288E", "1.23.0-0a1b2c3", {}, [0, 1]),
    "1_24_HL-225_four_cards_INFERRED.txt": (4, "HL-225", "1.24.1-0a1b2c3", {}, [0, 1, 2, 3]),
    "with_processes_row_without_closing_bar.txt": (
        3,
        "HL-225",
        "1.16.0-0a1b2c3",
        {1: 600001, 2: 2000002},
        [0],
    ),
    "no_driver_or_no_device.txt": (0, None, None, {}, []),
    "query_csv.txt": (0, None, None, {}, []),
    "README.txt": (0, None, None, {}, []),
}


@pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the public outputs of hl-smi are in ../shared, which is not here"
)
def test_every_stored_sample_is_understood():
    assert {path.name for path in SAMPLES.iterdir()} == STORED.keys()
    for name, (count, board, driver, held, free) in STORED.items():
        text = (SAMPLES / name).read_text()
        cards, holders = parse_table(text)
        assert (len(cards), cards[0].name if cards else None, find_driver(cards, text)) == (
            count,
            board,
            driver,
        ), name
        assert {holder.card: holder.pid for holder in holders} == held, name
        assert [card.index for card in find_free(cards, holders)] == free, name
        assert parse_query(text) == [], name


@pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="the public outputs of hl-smi are in ../shared, which is not here"
)
def test_the_stored_answers_to_queries_are_maps_or_none():
    blocks = re.split(r"^\$ .*\n", (SAMPLES / "query_csv.txt").read_text(), flags=re.MULTILINE)[1:]
    assert [read_module_map(block) for block in blocks] == [{0: 2, 1: 6}, {}, {}]


def test_a_query_gives_module_memory_and_driver():
    cards = parse_query(query_output())
    assert (
        [card.index for card in cards] == list(range(8))
        and cards[0].module == 2
        and cards[0].driver[:4] == "1.21"
    )
    assert parse_query("0, HL-225, 1.21.0, 1, 1, N/A, N/A")[0].module is None
    (bare,) = parse_query("0, HL-225, 1.24.0, 98304, 40000, 0, 3")  # csv without units
    assert bare.is_filled and not cards[0].is_filled


def test_processes_are_listed_by_card():
    listed, holders = parse_table(table_output(held=(1, 5)))
    assert len(listed) == 8 and [(h.card, h.pid) for h in holders] == [(1, 4712), (5, 4716)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|",
        ",",
        "\0" * 9,
        query_output()[:100],
        "| " * 10000,
        "," * (len(QUERY) - 1),
        "٣, a, b, c, d, e, f",
    ],
)
def test_whatever_else_comes_is_no_card(text):
    assert parse_query(text) == [] and parse_table(text) == ([], [])


@pytest.mark.parametrize(
    ("name", "generation"),
    [("HL-225", 2), ("HL-288E", 2), ("HL-325L", 3), ("HL-338", 3), ("Gaudi", None)],
)
def test_the_board_tells_the_generation(name, generation):
    assert Card(index=0, name=name).generation == generation


def test_modules_that_are_not_here_cannot_run():
    cards = [Card(index=0, name="HL-225", module=0), Card(index=1, name="HL-225", module=1)]
    assert "cards here are 0, 1" in check_cards(cards, [], {6, 7})[0].cause
    assert (
        check_cards(cards, [Holder(1, 5, "x")], {0})
        == []
        == check_cards([], [], None)
        == check_cards([], [], {1})
    )


def test_memory_in_use_without_a_process_is_a_note_and_no_free_card():
    cards = [
        Card(index=0, name="HL-225", used="90000 MiB"),
        Card(index=1, name="HL-225", used="768 MiB"),
    ]
    (note,) = check_cards(cards, [], None)
    assert not note.blocking and "card 0: 90000 MiB" in note.cause and "card 1" not in note.cause
    assert find_free(cards, []) == cards[1:] and find_free(cards, [Holder(1, 5, "x")]) == []
    (held,) = check_cards(cards, [Holder(0, 5, "x")], None)
    assert "x (pid 5)" in held.cause and "1 of 2 cards are not held" in held.cause


def test_holders_of_device_files():
    files = {7: ("python3", ["/dev/accel/accel2", "/dev/accel/accel2"]), 8: ("x", ["/dev/hl10"])}
    assert holders_of_files(files) == [Holder(2, 7, "python3"), Holder(10, 8, "x")]
