"""Recipes: YAML files of values, flat (`lr: 0.001`) or nested (`Optimizer: {lr: 0.001}`), and words that change them.

Nothing here knows a flag: a recipe becomes a flat {path: value}, whose paths are the keys joined by dots, list places
as numbers. What a dotted path means to a command stands in its table of meanings (`dino/cli/passl_recipe.py`).
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import yaml

from dino.errors import OptionError, nearest
from dino.files import find_preset

DEEPEST = 20  # levels of sections
MOST = (
    5000  # values, once every alias is written out; a few lines of aliases can stand for billions
)

# What PyYAML raises: besides its own, whatever Python has for impossible dates, numbers and tags, and for deep nesting.
NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)

logger = logging.getLogger(__name__)

Meaning = Callable[
    [Any], dict[str, Any]
]  # value of a dotted path -> {field: value}; ValueError if it cannot be meant


class _Loader(yaml.SafeLoader):
    """YAML's plain values; of two equal keys PyYAML would take the last without a word."""

    def get_single_node(self) -> yaml.Node | None:
        """Read the document; checked here, before merged mappings (`<<`) are written out."""
        counts: dict[int, int] = {}
        node = super().get_single_node()
        if node is not None and _count_values(node, counts) > max(MOST, len(counts)):
            raise yaml.YAMLError(
                f"its aliases stand for more than {MOST} values; write out those that are meant"
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read one mapping; checked here, since merged mappings (`<<`) may give a key anew later."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # PyYAML refuses it itself
            if key.value in seen:
                raise yaml.YAMLError(
                    f"the key {key.value!r} stands twice, again in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)
        return node


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Nodes below and with one, every alias written out; one that lies in itself counts there as 1."""
    if id(node) not in counts:
        counts[id(node)] = 1
        pairs = isinstance(node, yaml.MappingNode)
        parts = (
            itertools.chain(*node.value)
            if pairs
            else node.value
            if isinstance(node, yaml.SequenceNode)
            else ()
        )
        counts[id(node)] += sum(_count_values(part, counts) for part in parts)
    return counts[id(node)]


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)


def read_recipe(path: str) -> dict[str, Any]:
    """Read a recipe as it is.

    Raises:
        OptionError: It is missing, no YAML, or no mapping.
    """
    try:
        recipe = _load(find_preset(path).read_text(encoding="utf-8")) or {}
    except (OSError, *NO_YAML) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise OptionError(f"--config {path} must hold `flag: value` lines, one a flag")
    return {str(key): value for key, value in recipe.items()}


def read_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Read words `PATH=VALUE`; a value is YAML, never code, and may hold further signs of equality.

    Returns:
        Values by path; of equal paths the last counts.

    Raises:
        OptionError: There is no such sign, or the value is no YAML.
    """
    found = {}
    for word in words:
        path, sign, text = word.partition("=")
        if not sign or not path:
            raise OptionError(
                f"-o {word} changes nothing", remedy="write KEY=VALUE, as in -o Optimizer.lr=0.01"
            )
        try:
            found[path] = _load(text)
        except NO_YAML as error:
            raise OptionError(f"-o {word}: the value is no YAML ({error})") from error
    return found


def interpret(
    where: str, tree: Mapping[str, Any], meanings: Mapping[str, Meaning]
) -> dict[str, Any]:
    """What a recipe says as {field: value}.

    Args:
        where: What the user wrote, for errors.
        tree: Values, nested or not.
        meanings: What each dotted path means.

    Raises:
        OptionError: A path that is unknown (the nearest is named), a value that cannot be meant, or two paths that give
            one field different values.
    """
    found: dict[str, tuple[Any, str]] = {}
    for path, value in flatten(tree, meanings):
        if path not in meanings:
            raise OptionError(
                f"{where} has the unknown key {path!r}: {nearest(path, list(meanings))}"
            )
        try:
            meant = meanings[path](value)
        except ValueError as error:
            raise OptionError(f"{where}: {path} {error}") from error
        for field, part in meant.items():
            before, other = found.setdefault(field, (part, path))
            if before is not part and before != part:
                raise OptionError(
                    f"{where}: {other} and {path} set --{field} to {before} and {part}",
                    remedy="drop one",
                )
    idle = [path for path, _ in flatten(tree, meanings) if meanings[path] is of_no_meaning]
    if idle and is_rank_zero():
        logger.warning("%s: of no meaning here: %s", where, ", ".join(idle))
    return {field: value for field, (value, _) in found.items()}


def flatten(tree: Any, known: Collection[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for each leaf of nested mappings and lists; a known path is a leaf, whatever it is.

    Raises:
        OptionError: Nested too deeply, as YAML is that refers to itself.
    """
    if path.count(".") > DEEPEST:
        raise OptionError(f"the recipe is nested too deeply at {path[:40]}...")
    parts: dict[Any, Any] = {}
    if path not in known:
        parts = (
            tree
            if isinstance(tree, dict)
            else dict(enumerate(tree))
            if isinstance(tree, list)
            else {}
        )
    for key, value in parts.items():
        yield from flatten(value, known, f"{path}.{key}" if path else str(key))
    if not parts and path:
        yield path, tree


RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")  # of torchrun, mpirun and srun


def is_rank_zero() -> bool:
    """Whether this process is the one of its launch that speaks; asked before the run knows its processes."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def sets(*fields: str) -> Meaning:
    """The key gives these fields its value."""
    return lambda value: dict.fromkeys(fields, value)


def must_be(*known: Any) -> Meaning:
    """The key says what is done here anyway; any other value is refused."""

    def check(value: Any) -> dict[str, Any]:
        if value not in known:
            raise ValueError(f"is {value!r}; here it is always {' or '.join(map(repr, known))}")
        return {}

    return check


def of_no_meaning(_value: Any) -> dict[str, Any]:
    """The key is about the other software; its value changes nothing here."""
    return {}
