"""Reads recipes: YAML files of values, flat (`lr: 0.001`) or nested (`Optimizer: {lr: 0.001}`).

This module knows no flags. A recipe becomes a flat {path: value}; a path joins the keys, and list
indices as numbers, with dots. A table of meanings (`dino/cli/passl_recipe.py`) says what each path
means to a command.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import yaml

from dino.errors import OptionError, nearest
from dino.files import find_preset, read_bounded
from dino.runtime.launch import read_launch

DEEPEST = 20  # levels of sections
LARGEST = 1 << 20  # bytes of a recipe
MOST = 5000  # values after aliases are expanded; a few lines of aliases can stand for billions

# What PyYAML raises: its own errors, and Python's for impossible dates, numbers, tags and nesting.
NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)

logger = logging.getLogger(__name__)

# Value of a dotted path -> {field: value}; raises ValueError for an invalid value.
Meaning = Callable[[Any], dict[str, Any]]


class _Loader(yaml.SafeLoader):
    """Loads plain YAML values; refuses duplicate keys, where PyYAML would take the last."""

    def get_single_node(self) -> yaml.Node | None:
        """Read the document; check its size before merged mappings (`<<`) are expanded."""
        counts: dict[int, int] = {}
        node = super().get_single_node()
        if node is not None and _count_values(node, counts) > max(MOST, len(counts)):
            raise yaml.YAMLError(
                f"its aliases expand to more than {MOST} values; write out the values you need"
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read one mapping; check keys before merged mappings (`<<`), which may repeat a key."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # PyYAML refuses it itself
            if key.value in seen:
                raise yaml.YAMLError(
                    f"duplicate key {key.value!r}, again in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)
        return node


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count a node and the nodes below it, aliases expanded; a node inside itself counts as 1."""
    if id(node) not in counts:
        counts[id(node)] = 1

        children: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            children = itertools.chain(*node.value)
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        counts[id(node)] += sum(_count_values(child, counts) for child in children)
    return counts[id(node)]


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)


def read_recipe(path: str) -> dict[str, Any]:
    """Read a recipe without interpreting it.

    Raises:
        OptionError: The file is missing, is not YAML, or is not a mapping.
    """
    try:
        recipe = _load(read_bounded(find_preset(path), LARGEST).decode("utf-8-sig")) or {}
    except RecursionError as error:
        raise OptionError(f"--config {path} is nested too deeply") from error
    except (OSError, *NO_YAML) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise OptionError(f"--config {path} must hold one `flag: value` line per flag")
    return {str(key): value for key, value in recipe.items()}


def read_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Read words `PATH=VALUE`; a value is YAML, never code, and may contain more equals signs.

    Returns:
        Values by path; the last of equal paths counts.

    Raises:
        OptionError: There is no equals sign, or the value is not YAML.
    """
    values = {}
    for word in words:
        path, sign, text = word.partition("=")
        if not sign or not path:
            raise OptionError(
                f"-o {word} changes nothing", remedy="write KEY=VALUE, as in -o Optimizer.lr=0.01"
            )
        try:
            values[path] = _load(text)
        except NO_YAML as error:
            raise OptionError(f"-o {word}: the value is not YAML ({error})") from error
    return values


def interpret(
    where: str, tree: Mapping[str, Any], meanings: Mapping[str, Meaning]
) -> dict[str, Any]:
    """Translate a recipe to {field: value}.

    Args:
        where: What the user wrote, for errors.
        tree: Values, nested or flat.
        meanings: Meaning of each dotted path.

    Raises:
        OptionError: A path is unknown (the message names the nearest), a value is invalid, or two
            paths set one field to different values.
    """
    found: dict[str, tuple[Any, str]] = {}
    for path, value in flatten(tree, meanings):
        if path not in meanings:
            raise OptionError(
                f"{where} has the unknown key {path!r}: {nearest(path, list(meanings))}"
            )
        try:
            settings = meanings[path](value)
        except ValueError as error:
            raise OptionError(f"{where}: {path} {error}") from error
        for field, new in settings.items():
            before, other = found.setdefault(field, (new, path))
            if before is not new and before != new:
                raise OptionError(
                    f"{where}: {other} and {path} set --{field} to {before} and {new}",
                    remedy="remove one",
                )
    idle = [path for path, _ in flatten(tree, meanings) if meanings[path] is of_no_meaning]
    if idle and is_rank_zero():
        logger.warning("%s: these keys have no effect here: %s", where, ", ".join(idle))
    return {field: value for field, (value, _) in found.items()}


def flatten(tree: Any, known: Collection[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) for each leaf of nested mappings and lists.

    A known path is a leaf, whatever its value is.

    Raises:
        OptionError: The nesting is too deep, as in YAML that refers to itself.
    """
    if path.count(".") > DEEPEST:
        raise OptionError(f"the recipe is nested too deeply at {path[:40]}...")
    children: dict[Any, Any] = {}
    if path not in known and isinstance(tree, dict):
        children = tree
    elif path not in known and isinstance(tree, list):
        children = dict(enumerate(tree))
    for key, value in children.items():
        yield from flatten(value, known, f"{path}.{key}" if path else str(key))
    if not children and path:
        yield path, tree


def is_rank_zero() -> bool:
    """Whether this process is rank 0 of its launch; asked before the run knows its processes."""
    return read_launch(os.environ).rank == 0


def sets(*fields: str) -> Meaning:
    """The key sets these fields to its value."""
    return lambda value: dict.fromkeys(fields, value)


def must_be(*known: Any) -> Meaning:
    """The key must have one of the values that this project always uses."""

    def check(value: Any) -> dict[str, Any]:
        if value not in known:
            raise ValueError(f"must be {' or '.join(map(repr, known))} (got {value!r})")
        return {}

    return check


def of_no_meaning(_value: Any) -> dict[str, Any]:
    """The key concerns the other software; its value has no effect here."""
    return {}
