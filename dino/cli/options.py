"""Converts the library's configs to flags and recipes, and back.

A command has a config: a frozen dataclass with groups of settings as fields. `FLAGS` says how each
setting is written on a command line. `parse` resolves every value in the order flag > `-o` > recipe
> default. This module uses only the standard library and PyYAML, so that `--help` is quick and the
environment can be completed before torch is imported.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from dino.cli.flags import FLAGS
from dino.cli.parser import NO_HELP, Flag, Help, read_flags
from dino.cli.passl_recipe import LINEAR_PROBE
from dino.cli.recipes import Meaning, interpret, is_rank_zero, read_overrides, read_recipe, sets
from dino.config import LIMITS, REFERENCE, UNSET, Limits, as_recipe
from dino.errors import OptionError
from dino.evaluation.config import LinearConfig

Config = TypeVar("Config")

NESTED: Mapping[type, Mapping[str, Meaning]] = {
    LinearConfig: LINEAR_PROBE
}  # keys of nested recipes


def flags_of(config: type) -> Iterator[Flag]:
    """Yield every flag of a config class, in order, with its defaults."""
    defaults = config()
    for group in dataclasses.fields(defaults):
        settings = getattr(defaults, group.name)
        hints = typing.get_type_hints(type(settings))
        for field in dataclasses.fields(settings):
            yield Flag(
                group=group.name,
                field=field.name,
                annotation=hints[field.name],
                default=getattr(settings, field.name),
                reference=field.metadata.get(REFERENCE),
                limits=field.metadata.get(LIMITS, Limits()),
                spec=FLAGS[field.name],
                title=(type(settings).__doc__ or group.name).strip().splitlines()[0].rstrip("."),
            )


Completion = Callable[[Config, Collection[str]], tuple[Config, Mapping[str, str]]]


def parse(config: type[Config], argv: Sequence[str] | None = None, about: Help = NO_HELP) -> Config:
    """Resolve a config from a command line; see `parse_command`."""
    return parse_command(config, argv, about=about)[0]


def parse_command(
    config: type[Config],
    argv: Sequence[str] | None = None,
    complete: Completion[Config] | None = None,
    *,
    about: Help = NO_HELP,
) -> tuple[Config, frozenset[str], Mapping[str, str]]:
    """Resolve a config from flag, else `-o`, else recipe (`--config`), else default.

    Args:
        config: Class of the command's config.
        argv: Words of the command line; None means those of this process.
        complete: Chooses, with reasons, values that were not given and depend on more than the
            command line; runs before `--print_config` prints them.
        about: Texts of `--help`.

    Returns:
        The config, the names of the settings that a flag or the recipe gave, and the reasons for
        values that were chosen instead.

    Raises:
        OptionError: A flag or recipe key is unknown (the message names the nearest known one), or a
            value is invalid.
        SystemExit: `--print_config` printed the values, or `--help` the flags.
    """
    flags = tuple(flags_of(config))
    given = read_flags(config, flags, argv, about)
    recipe, changes, printed = (
        given.pop(name, None) for name in ("config", "override", "print_config")
    )
    meanings = _meanings_of(config, flags)
    values_of = _read_recipe(recipe, meanings, flags) if recipe else {}
    values_of |= interpret("-o", read_overrides(changes or ()), meanings) | given
    groups: dict[str, dict[str, Any]] = {}
    for known in flags:
        if known.field in values_of:
            groups.setdefault(known.group, {})[known.field] = known.convert(values_of[known.field])
    defaults = config()
    built = {
        group: dataclasses.replace(getattr(defaults, group), **fields)
        for group, fields in groups.items()
    }
    resolved = dataclasses.replace(typing.cast(Any, defaults), **built)
    reasons: Mapping[str, str] = {}
    if complete is not None:
        resolved, reasons = complete(resolved, frozenset(values_of))
    if printed:
        sys.stdout.write(as_recipe(resolved, values_of, reasons) if is_rank_zero() else "")
        raise SystemExit(0)
    return resolved, frozenset(values_of), reasons


def positional_to_flags(argv: Sequence[str] | None, *words: str) -> list[str]:
    """Write the words before the first flag as flags: `PATH --json -` as `--data_path=PATH ...`.

    Args:
        argv: Words of the command line; None means those of this process.
        *words: The flags, in the order of the positions. The user may write the flag instead.

    Raises:
        OptionError: There are more words than positions.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    count = next((index for index, word in enumerate(given) if word.startswith("-")), len(given))
    if count > len(words):
        raise OptionError(
            f"{given[len(words)]!r} is one word too many before the flags",
            remedy="--help lists the flags",
        )
    return [f"{word}={value}" for word, value in zip(words, given[:count], strict=False)] + given[
        count:
    ]


def as_words(config: type, options: Any, fields: Collection[str]) -> list[str]:
    """Write a config as the words of a command line, for another process to parse.

    Args:
        config: Class of the config that will parse them; only its groups are written.
        options: An instance of it, or of a config that has all its groups.
        fields: Names of the settings to write.
    """
    words: list[str] = []
    for known in flags_of(config):
        value = getattr(getattr(options, known.group), known.field)
        if (
            known.field not in fields
            or value is None
            or (known.spec.switch and value is known.default)
        ):
            continue
        if known.spec.switch:
            words += [known.words[0]] if value else ["--override", f"{known.field}=false"]
        elif isinstance(value, tuple):
            words += [known.words[0], *map(str, value)]
        else:
            words.append(f"{known.words[0]}={value}")
    return words


def _read_recipe(
    path: str, meanings: Mapping[str, Meaning], flags: Sequence[Flag]
) -> dict[str, Any]:
    """Return the recipe's values by field, without unset ones that still are defaults."""
    recipe = read_recipe(path)
    unset = recipe.pop(UNSET, [])
    if not isinstance(unset, list):
        raise OptionError(
            f"--config {path}: {UNSET} must be the list that --print_config writes (got {unset!r})"
        )
    values = interpret(f"--config {path}", recipe, meanings)
    for flag in flags:
        name = flag.field
        if name in values and name in unset and _is_default(flag, values[name]):
            del values[name]
    return values


def _meanings_of(config: type, flags: Sequence[Flag]) -> dict[str, Meaning]:
    """Map recipe keys to meanings: flags in each spelling without dashes, and nested paths."""
    spellings = {
        word.removeprefix("--"): known.field
        for known in flags
        for word in (*known.words, f"--{known.field}")
    }
    return {word: sets(field) for word, field in spellings.items()} | dict(NESTED.get(config, {}))


def _is_default(known: Flag, value: Any) -> bool:
    reference = known.reference if known.default is None else known.default
    return known.convert(value) in (known.default, reference)
