"""From frozen dataclasses to flags, recipes and back.

A group is a frozen dataclass whose fields are made by `flag`; a command is a frozen dataclass whose fields are groups.
`parse` gives the command with every value resolved in the order flag > recipe > default. Standard library and PyYAML
only, so that `--help` is quick and so that the environment can be completed before torch is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dino.errors import OptionError

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """How one field is written on the command line."""

    help: str
    choices: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()
    spelling: str | None = None
    switch: bool = False
    least: float | None = None
    most: float | None = None


def flag(default: Any, help: str, **spec: Any) -> Any:
    """Declare one flag as a dataclass field.

    Args:
        default: The value without a flag or recipe; None means "chosen when the run starts".
        help: What it means, with unit and range.
        **spec: `choices` (allowed values), `least` and `most` (bounds of a number, or of each of several), `also`
            (other spellings), `spelling` (if it is not `--field_name`), `switch` (present means True; takes no value).
    """
    return dataclasses.field(default=default, metadata={"spec": Spec(help=help, **spec)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of one command: its place in the command's groups, its type and its default."""

    group: str
    field: str
    annotation: Any
    default: Any
    spec: Spec

    @property
    def words(self) -> tuple[str, ...]:
        """Every spelling on the command line, the usual one first."""
        return (self.spec.spelling or f"--{self.field}", *self.spec.also)

    def convert(self, value: Any) -> Any:
        """Give `value` (text of a flag, or a YAML value of a recipe) this flag's type.

        Raises:
            OptionError: The value is of another type, not among the choices or out of bounds; the text names both.
        """
        try:
            result = _convert(value, self.annotation)
        except (TypeError, ValueError):
            raise OptionError(f"{self.words[0]} got {value!r}, wants {_describe(self.annotation)}") from None
        if self.spec.choices and result is not None and result not in self.spec.choices:
            raise OptionError(f"{self.words[0]} got {value!r}, wants one of {', '.join(self.spec.choices)}")
        for number in result if isinstance(result, tuple) else (result,):
            self._check_bounds(number)
        return result

    def _check_bounds(self, number: Any) -> None:
        if number is None:
            return
        least, most = self.spec.least, self.spec.most
        if number is None:
            return
        # Written so that nan, which no comparison holds for, is out of any bounds.
        above, below = least is None or number >= least, most is None or number <= most
        if not (above and below):
            bounds = f"{least} or more" if most is None else f"{least} to {most}"
            raise OptionError(f"{self.words[0]} {number} cannot be; give {bounds}")


def flags_of(command: type) -> Iterator[Flag]:
    """Yield every flag of a command class, with the command's own defaults (`DEFAULTS`) applied."""
    overrides: Mapping[str, Any] = getattr(command, "DEFAULTS", {})
    for group, group_type in typing.get_type_hints(command).items():
        if not dataclasses.is_dataclass(group_type):
            continue
        hints = typing.get_type_hints(group_type)
        for field in dataclasses.fields(typing.cast(Any, group_type)):
            default = overrides.get(field.name, field.default)
            spec = field.metadata["spec"]
            yield Flag(group=group, field=field.name, annotation=hints[field.name], default=default, spec=spec)


def parse(command: type[Options], argv: Sequence[str] | None = None) -> Options:
    """Resolve a command's options: flag, else recipe (`--config`), else default.

    Args:
        command: A frozen dataclass of groups with a field `explicit: frozenset[str]`; its docstring is the help text.
        argv: Words of the command line; None means those of this process.

    Returns:
        The command's options; `explicit` holds the names that a flag or the recipe set.

    Raises:
        OptionError: An unknown flag or recipe key (the nearest known one is named), or a value that does not fit.
    """
    flags = tuple(flags_of(command))
    given = _read_flags(command, flags, argv)
    recipe = given.pop("config", None)
    chosen = {**(_read_recipe(recipe, flags) if recipe else {}), **given}
    groups: dict[str, dict[str, Any]] = {}
    for known in flags:
        value = known.convert(chosen[known.field]) if known.field in chosen else known.default
        groups.setdefault(known.group, {})[known.field] = value
    hints = typing.get_type_hints(command)
    built = {group: hints[group](**fields) for group, fields in groups.items()}
    return command(**built, explicit=frozenset(chosen))


def name_places(argv: Sequence[str] | None, *words: str) -> list[str]:
    """Give the words that stand before the first flag the flags they mean: `PATH --json -` as `--data_path=PATH ...`.

    Args:
        argv: Words of the command line; None means those of this process.
        *words: The flags, in the order of the places; a place may be left out and its flag written instead.

    Raises:
        OptionError: More words than places.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    count = next((place for place, word in enumerate(given) if word.startswith("-")), len(given))
    if count > len(words):
        raise OptionError(f"{given[len(words)]!r} is one word too many before the flags; --help lists the flags")
    return [f"{word}={value}" for word, value in zip(words, given[:count], strict=False)] + given[count:]


def as_dict(options: Any) -> dict[str, Any]:
    """Flatten a command's options to {field: value}, the form stored as `args` in a checkpoint."""
    return {
        known.field: _plain(getattr(getattr(options, known.group), known.field)) for known in flags_of(type(options))
    }


def as_words(command: type, options: Any, fields: Collection[str]) -> list[str]:
    """Write options as the words of a command line, for another process to parse.

    Args:
        command: The command that will parse them; of `options` only its groups are written.
        options: Options of this command, or of one that has all its groups.
        fields: Names of the fields to write, as `explicit` holds them.
    """
    words: list[str] = []
    for known in flags_of(command):
        value = getattr(getattr(options, known.group), known.field)
        if known.field not in fields or value is None or (known.spec.switch and not value):
            continue
        if known.spec.switch:
            words.append(known.words[0])
        elif isinstance(value, tuple):
            words += [known.words[0], *map(str, value)]
        else:
            words.append(f"{known.words[0]}={value}")
    return words


def nearest(word: str, known: Sequence[str]) -> str:
    """The remedy for an unknown word: the nearest known one, or the list of all."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise OptionError(f"{message}; --help lists the flags")


def _read_flags(command: type, flags: Sequence[Flag], argv: Sequence[str] | None) -> dict[str, Any]:
    parser = _Parser(
        description=command.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="recipe: a YAML file of flag names and values; flags win over it")
    for known in flags:
        _add_flag(parser, known)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        words = ["--config", *(word for known in flags for word in known.words)]
        raise OptionError(f"unknown flag {unknown[0]}: {nearest(unknown[0].split('=')[0], words)}")
    return vars(found)


def _add_flag(parser: argparse.ArgumentParser, known: Flag) -> None:
    text = f"{known.spec.help} (default: {_shown(known.default)})".replace("%", "%%")
    if known.spec.switch:
        parser.add_argument(*known.words, dest=known.field, action="store_true", help=text)
        return
    many = typing.get_origin(_required(known.annotation)) is tuple
    metavar = "{" + ",".join(known.spec.choices) + "}" if known.spec.choices else known.field.upper()
    parser.add_argument(*known.words, dest=known.field, nargs="+" if many else None, metavar=metavar, help=text)


def _read_recipe(path: str, flags: Sequence[Flag]) -> dict[str, Any]:
    """The recipe's values by field; keys may be written as any spelling of the flag, without the leading dashes."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(recipe, dict):
        raise OptionError(f"--config {path} must hold `flag: value` lines, one a flag")
    fields = {word.removeprefix("--"): known.field for known in flags for word in (*known.words, f"--{known.field}")}
    for key in recipe:
        if key not in fields:
            raise OptionError(f"--config {path} has the unknown key {key!r}: {nearest(str(key), list(fields))}")
    return {fields[key]: value for key, value in recipe.items()}


def _required(annotation: Any) -> Any:
    """`X` of `X | None`, else the annotation itself."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _convert(value: Any, annotation: Any) -> Any:
    wanted = _required(annotation)
    if value is None and wanted is not annotation:
        return None
    if typing.get_origin(wanted) is tuple:
        return _convert_tuple(value, typing.get_args(wanted))
    if wanted is bool:
        return _convert_bool(value)
    if value is None or isinstance(value, bool | list | dict) or (wanted is int and isinstance(value, float)):
        raise ValueError(value)
    return wanted(value)


def _convert_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (parts[-1] is not Ellipsis and len(value) != len(parts)):
        raise ValueError(value)
    return tuple(_convert(item, parts[0]) for item in value)


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in {"1", "true", "on", "yes"}:
        return True
    if word in {"0", "false", "off", "no"}:
        return False
    raise ValueError(value)


def _describe(annotation: Any) -> str:
    wanted = _required(annotation)
    if typing.get_origin(wanted) is tuple:
        parts = typing.get_args(wanted)
        return f"{'one or more' if parts[-1] is Ellipsis else len(parts)} {parts[0].__name__} values"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[wanted]


def _shown(default: Any) -> str:
    if default is None:
        return "chosen at start"
    return " ".join(str(part) for part in default) if isinstance(default, tuple) else str(default)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
