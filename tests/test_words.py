"""The words of the package: flags stay on the command line, and names are the field's, in American
spelling."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "dino").rglob("*.py"))
LIBRARY = [path for path in PACKAGE if path.relative_to(ROOT / "dino").parts[0] != "cli"]
CODE = [*PACKAGE, *sorted(ROOT.glob("*.py"))]
LOGGING = {"debug", "info", "warning", "error", "exception", "critical", "warn"}
REPLACED = {  # names of before: the field's
    "explicit": "None, or given",
    "first_goes_first": "rank_zero_first",
    "hold_gradients": "no_sync",
    "end_phase": "mark_step",
    "move_average": "ema_update",
    "cut_centre": "center_crop",
    "cut_random": "random_resized_crop",
    "local_world": "local_world_size",
    "is_first": "is_rank_zero",
    "before_update": "a line of the step",
    "WholeStep": "TracedStep",
    "rehearse": "dry_run",
    "measure_product": "measure_matmul",
    "name_places": "positional_to_flags",
    "writing_whole": "atomic_write",
    "write_whole": "atomic_write",
    "drafting": "atomic_draft",
    "admit": "validate",
    "describer": "extractor",
    "describe_left": "describe_unexpected",
}
BRITISH = re.compile(
    r"normalis|centre|optimis|colour|neighbour|synchronis|recognis|solaris|initialis", re.IGNORECASE
)


def names_of(path):
    """Identifiers of a file, each with its line."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return [(token.string, token.start[0]) for token in tokens if token.type == tokenize.NAME]


def speech_of(path):
    """Texts of what a file raises, warns and logs, each with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        logs = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LOGGING
        )
        if isinstance(node, ast.Raise) or (
            logs and getattr(node.func.value, "id", "") in {"logger", "warnings"}
        ):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value, part.lineno


def show(path, line, word):
    return f"{path.relative_to(ROOT)}:{line}: {word}"


def test_the_library_names_no_flag_in_what_it_raises_warns_and_logs():
    wrong = [
        (path, n, text)
        for path in LIBRARY
        for text, n in speech_of(path)
        if re.search(r"(^|[\s(])--[a-z]", text)
    ]
    assert [show(*each) for each in wrong] == []


def test_flags_and_options_are_words_of_the_command_line():
    wrong = [
        (path, n, name)
        for path in LIBRARY
        for name, n in names_of(path)
        if re.fullmatch(r"\w+(Flags|Options)", name)
    ]
    assert [show(*each) for each in wrong] == []


@pytest.mark.parametrize("word", REPLACED)
def test_an_older_name_does_not_come_back(word):
    assert [
        show(path, n, f"{word}, say {REPLACED[word]}")
        for path in CODE
        if word in path.read_text(encoding="utf-8")
        for name, n in names_of(path)
        if name == word
    ] == []


def test_names_are_in_american_spelling():
    assert [
        show(path, n, name) for path in CODE for name, n in names_of(path) if BRITISH.search(name)
    ] == []
