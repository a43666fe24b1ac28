"""Flags, recipes and defaults: who wins, what is refused, and what an error names."""

import dataclasses
import string
from dataclasses import dataclass

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dino.cli.flags import FLAGS
from dino.cli.options import as_words, flags_of, parse, parse_command, positional_to_flags
from dino.cli.spec import Spec
from dino.config import as_dict, as_recipe, chosen, derived, setting
from dino.errors import OptionError, nearest
from dino.evaluation.config import KnnConfig
from dino.training.config import TrainConfig
from dino.visualization.config import AttentionConfig


@dataclass(frozen=True, kw_only=True)
class PartConfig:
    """One setting of every kind."""

    size: int = 3
    rate: float = 0.5
    name: str = "oak"
    limit: int | None = None
    asked: bool = True
    loud: bool = False
    pair: tuple[float, float] = (0.1, 0.9)
    counts: tuple[int, ...] = (1, 2)
    kind: str = setting("a", choices=("a", "b"))
    old_name: int = 0
    guess: int | None = derived(5)


@dataclass(frozen=True, kw_only=True)
class MoreConfig:
    """A second group."""

    depth: int = 7


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A command that does nothing."""

    part: PartConfig = PartConfig()
    more: MoreConfig = MoreConfig(depth=9)


SPECS = {
    "size": Spec("whole number"),
    "rate": Spec("number"),
    "name": Spec("text"),
    "limit": Spec("whole number or nothing"),
    "asked": Spec("yes or no"),
    "loud": Spec("present or not", switch=True),
    "pair": Spec("two numbers"),
    "counts": Spec("some whole numbers"),
    "kind": Spec("one of two"),
    "old_name": Spec("known by three names", spelling="--old-name", also=("--older_name",)),
    "guess": Spec("found out where it is not given"),
    "depth": Spec("whole number, 100 % of it"),
}


@pytest.fixture(autouse=True)
def _toy_flags(monkeypatch):
    """The toy's settings are written as flags, too."""
    for name, spec in SPECS.items():
        monkeypatch.setitem(FLAGS, name, spec)


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe; gives the words that name it."""

    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
        return ["--config", str(path)]

    return write


def refusal(words, command=Toy):
    with pytest.raises(OptionError) as caught:
        parse(command, words)
    return str(caught.value)


def test_without_words_every_value_is_the_default_and_nothing_is_given():
    assert parse_command(Toy, []) == (Toy(), frozenset(), {})


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_default(recipe):
    options, given, _ = parse_command(Toy, [*recipe({"size": 10, "rate": 2.5}), "--size", "20"])
    assert (options.part.size, options.part.rate, options.part.name) == (20, 2.5, "oak")
    assert given == {"size", "rate"}


def test_a_recipe_wins_over_the_defaults_of_the_command(recipe):
    assert parse(Toy, recipe({"depth": 1})).more.depth == 1


def test_a_value_equal_to_the_default_is_given_all_the_same():
    assert parse_command(Toy, ["--size", "3"])[1] == {"size"}


def test_a_derived_setting_that_nobody_gave_is_none_and_shown_as_the_references_number(
    recipe, capsys
):
    options = parse(Toy, [])
    assert (
        options.part.guess is None
        and chosen(options.part, "guess") == as_dict(options)["guess"] == 5
    )
    with pytest.raises(SystemExit):
        parse(Toy, ["--help"])
    assert "found out where it is not given (default: 5)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_derived_setting_is_given_by_its_flag_and_by_its_line_in_a_recipe(recipe):
    assert parse(Toy, ["--guess", "5"]).part.guess == 5
    assert parse(Toy, recipe("guess: 5")).part.guess == 5


def test_a_printed_recipe_leaves_derived_what_nobody_gave(recipe):
    assert parse(Toy, recipe(as_recipe(Toy(), given=()))).part.guess is None
    edited = as_recipe(Toy(), given=()).replace("guess: 5", "guess: 6")
    assert parse(Toy, recipe(edited)).part.guess == 6


def test_what_completes_a_config_sees_what_was_given_and_its_reasons_are_kept():
    seen = []

    def complete(options, given):
        seen.append(given)
        return dataclasses.replace(options, more=MoreConfig(depth=1)), {
            "depth": "so said the images"
        }

    config, given, reasons = parse_command(Toy, ["--size", "4"], complete)
    assert seen == [{"size"}] and config.more.depth == 1
    assert given == {"size"} and reasons == {"depth": "so said the images"}


def test_a_tilde_is_the_home_folder_wherever_a_path_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("data_path: ~/images\n")
    words = ("--config=~/recipe.yaml", "--output_dir=~/run", "-o", "init_from=~/start.pth")
    options = parse(TrainConfig, words)
    assert options.data.data_path == f"{tmp_path}/images"
    assert options.run.output_dir == f"{tmp_path}/run"
    assert options.student.init_from == f"{tmp_path}/start.pth"
    assert parse(AttentionConfig, ("--image_path", "~/a.png", "./~/b.png")).pictures.image_path == (
        f"{tmp_path}/a.png",
        "./~/b.png",
    )


def test_the_last_of_two_equal_flags_counts():
    assert parse(Toy, ["--size", "1", "--size", "2"]).part.size == 2


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--size", "-4"], "size", -4),
        (["--rate", "1e-3"], "rate", 0.001),
        (["--rate=-2.5"], "rate", -2.5),
        (["--limit", "5"], "limit", 5),
        (["--loud"], "loud", True),
        (["--pair", "1", "2.5"], "pair", (1.0, 2.5)),
        (["--counts", "4"], "counts", (4,)),
        (["--counts", "4", "5", "6"], "counts", (4, 5, 6)),
        (["--kind", "b"], "kind", "b"),
        (["--old-name", "4"], "old_name", 4),
        (["--older_name", "4"], "old_name", 4),
        (["--name", ""], "name", ""),
    ],
)
def test_words_become_values_of_the_declared_type(words, field, value):
    result = getattr(parse(Toy, words).part, field)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("word", "value"),
    [("1", True), ("true", True), ("True", True), ("ON", True), ("yes", True)]
    + [("0", False), ("false", False), ("FALSE", False), ("off", False), ("no", False)],
)
def test_bool_words_are_those_of_the_original_and_yaml(word, value):
    assert parse(Toy, ["--asked", word]).part.asked is value


@pytest.mark.parametrize(
    ("words", "value", "wanted"),
    [
        (["--size", "2.5"], "'2.5'", "a whole number"),
        (["--size", "many"], "'many'", "a whole number"),
        (["--rate", "fast"], "'fast'", "a number"),
        (["--asked", "maybe"], "'maybe'", "true or false"),
        (["--pair", "1"], "['1']", "2 float values"),
        (["--pair", "1", "2", "3"], "['1', '2', '3']", "2 float values"),
        (["--counts", "1", "x"], "['1', 'x']", "one or more int values"),
        (["--kind", "c"], "'c'", "one of a, b"),
    ],
)
def test_a_value_of_another_type_is_refused_with_value_and_wish(words, value, wanted):
    assert refusal(words) == f"{words[0]} must be {wanted} (got {value})"


@pytest.mark.parametrize(
    "text",
    [
        "size: 2.5",
        "size: [1]",
        "size: true",
        "size:",
        "rate: {a: 1}",
        "name: [a]",
        "name: true",
        "asked: 2",
    ]
    + [
        "pair: 1",
        "pair: [1, 2, 3]",
        "counts: 3",
        "counts: [a]",
        "kind: c",
        "loud: loudly",
        "asked:",
        "pair:",
    ],
)
def test_a_recipe_value_of_another_type_is_refused_by_the_name_of_its_flag(recipe, text):
    assert f"--{text.split(':')[0]} must be" in refusal(recipe(text))


def test_an_empty_recipe_value_is_not_the_text_none(recipe):
    assert "--name must be text (got None)" in refusal(recipe("name:"))


def test_an_empty_recipe_value_unsets_an_optional_flag(recipe):
    options, given, _ = parse_command(Toy, recipe("limit:"))
    assert options.part.limit is None
    assert given == {"limit"}


def test_numbers_that_yaml_reads_as_text_are_numbers(recipe):
    assert parse(Toy, recipe("rate: 1e-3\nsize: '4'")).part == PartConfig(rate=0.001, size=4)


def test_switches_take_a_word_in_a_recipe(recipe):
    assert parse(Toy, recipe("loud: yes")).part.loud is True
    assert parse(Toy, recipe("loud: false")).part.loud is False


@pytest.mark.parametrize("key", ["old_name", "old-name", "older_name"])
def test_a_recipe_may_use_every_spelling(recipe, key):
    assert parse(Toy, recipe({key: 5})).part.old_name == 5


@pytest.mark.parametrize(
    ("word", "near"),
    [("--sise", "--size"), ("--older-name", "--older_name"), ("--cuonts=3", "--counts")],
)
def test_an_unknown_flag_names_the_nearest(word, near):
    text = refusal([word])
    assert text.startswith(f"unknown flag {word}: ")
    assert f"did you mean {near}?" in text


def test_a_misspelt_config_flag_names_config():
    assert "did you mean --config?" in refusal(["--confg", "recipe.yaml"])


def test_flags_are_not_abbreviated():
    assert "unknown flag --coun" in refusal(["--coun", "3"])


def test_an_unknown_recipe_key_names_file_key_and_nearest(recipe):
    words = recipe({"sise": 3})
    assert refusal(words) == f"--config {words[1]} has the unknown key 'sise': did you mean size?"


def test_a_key_like_nothing_known_lists_all(recipe):
    assert "known are asked, counts, depth" in refusal(recipe({"zzzzzzzzzzzz": 1}))


@pytest.mark.parametrize("text", ["- size\n- 3", "size", "size: [", "{a: b", "\x00"])
def test_a_recipe_that_is_no_mapping_is_refused_by_name(recipe, text):
    words = recipe(text)
    assert f"--config {words[1]}" in refusal(words)


def test_an_empty_recipe_changes_nothing(recipe):
    assert parse(Toy, recipe("# nothing yet\n")) == parse(Toy, [])


def test_a_missing_recipe_is_refused_by_name(tmp_path):
    assert str(tmp_path / "none.yaml") in refusal(["--config", str(tmp_path / "none.yaml")])


def test_a_flag_without_its_value_is_refused():
    assert "--size" in refusal(["--size"])


def test_the_nearest_word_or_all_of_them():
    assert nearest("vit_smal", ["vit_small", "resnet50"]) == "did you mean vit_small?"
    assert nearest("q", ["b", "a"]) == "known are a, b"
    assert nearest("q", ["b", "a"], families=["letters"]) == "known are letters"


def test_help_shows_every_flag_its_default_and_percent_signs(capsys):
    with pytest.raises(SystemExit) as end:
        parse(Toy, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "100 % of it (default: 9)" in text
    assert "--old-name OLD_NAME, --older_name OLD_NAME" in text
    assert all(word in text for known in flags_of(Toy) for word in known.words)


def test_the_launchers_spellings_are_accepted():
    for word in ("--local_rank", "--local-rank"):
        assert parse(TrainConfig, [f"{word}=3"]).launch.local_rank == 3
    assert parse(TrainConfig, ["--batch_size_per_gpu", "7"]).data.batch_size_per_device == 7
    assert parse(KnnConfig, ["--batch_size_per_gpu", "7"]).data.batch_size_per_device == 7


def test_the_gaudi_reference_spells_its_op_list_flags_with_dashes():
    words = [
        "--hmp",
        "--hmp-bf16",
        "a",
        "--hmp-fp32",
        "b",
        "--hmp-opt-level",
        "O2",
        "--hmp-verbose",
    ]
    precision = parse(TrainConfig, words).precision
    assert (precision.hmp, precision.hmp_bf16, precision.hmp_fp32) == (True, "a", "b")
    assert (precision.hmp_opt_level, precision.hmp_verbose) == ("O2", True)


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("hmp_bf16", "hmp_bf16", "list.txt"),
        ("hmp-bf16", "hmp_bf16", "list.txt"),
        ("batch_size_per_gpu", "batch_size_per_device", 5),
        ("local-rank", "local_rank", 5),
    ],
)
def test_recipes_take_the_aliases_of_the_real_commands(recipe, key, field, value):
    options, given, _ = parse_command(TrainConfig, recipe({key: value}))
    assert as_dict(options)[field] == value
    assert given == {field}


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse(Toy, []).part.size = 4


def test_as_dict_is_flat_and_plain():
    assert as_dict(parse(Toy, ["--counts", "5"])) == {
        **{"size": 3, "rate": 0.5, "name": "oak", "limit": None, "asked": True, "loud": False},
        **{"pair": [0.1, 0.9], "counts": [5], "kind": "a", "old_name": 0, "guess": 5, "depth": 9},
    }


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(string.ascii_letters + string.digits + "/._ äß", min_size=1).filter(
    lambda word: word == word.strip()
)
VALUES = {
    "size": st.integers(),
    "rate": NUMBERS,
    "name": WORDS,
    "limit": st.none() | st.integers(),
    "asked": st.booleans(),
    "loud": st.booleans(),
    "pair": st.tuples(NUMBERS, NUMBERS),
    "counts": st.lists(st.integers(), min_size=1, max_size=5).map(tuple),
    "kind": st.sampled_from(["a", "b"]),
    "old_name": st.integers(),
    "guess": st.integers(),
}
QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(values=st.fixed_dictionaries(VALUES))
def test_options_written_as_a_recipe_come_back_the_same(recipe, values):
    options = Toy(part=PartConfig(**values))
    assert parse(Toy, recipe(as_dict(options))) == options


POSITIVE = st.floats(min_value=1e-6, max_value=1e12)


@QUICK
@given(
    values=st.fixed_dictionaries(
        VALUES
        | {
            "pair": st.tuples(POSITIVE, POSITIVE),
            "counts": st.lists(st.integers(0), min_size=1).map(tuple),
        }
    )
)
def test_options_written_as_flags_come_back_the_same(values):
    words = as_words(Toy, Toy(part=PartConfig(**values)), values)
    assert parse(Toy, words).part == PartConfig(**values)


@QUICK
@given(word=st.text(string.ascii_lowercase + "_", min_size=1, max_size=12))
def test_no_word_is_silently_ignored(word):
    known = {spelling for declared in flags_of(TrainConfig) for spelling in declared.words} | {
        "--help"
    }
    known |= {f"--{name}" for name in ("config", "override", "print_config")}
    if f"--{word}" not in known:
        assert f"--{word}" in refusal([f"--{word}", "1"], TrainConfig)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("", ""),
        ("--json -", "--json -"),
        ("a --json -", "--one=a --json -"),
        ("a b --json - c", "--one=a --two=b --json - c"),
        ("--one a", "--one a"),
    ],
)
def test_words_before_the_flags_have_their_places(given, named):
    assert positional_to_flags(given.split(), "--one", "--two") == named.split()


def test_a_word_without_a_place_is_refused():
    with pytest.raises(OptionError, match="'c' is one word too many"):
        positional_to_flags(["a", "b", "c", "--json", "-"], "--one", "--two")
