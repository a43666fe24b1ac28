"""From frozen dataclasses to flags, recipes and back.

A group is a frozen dataclass whose fields are made by `flag`; a command is a frozen dataclass whose fields are groups.
`parse` gives the command with every value resolved in the order flag > `-o` > recipe > default. Standard library and
PyYAML only, so that `--help` is quick and so that the environment can be completed before torch is imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from dino import values
from dino.errors import OptionError
from dino.recipes import DEFAULTS, Meaning, interpret, is_first, nearest, read_overrides, read_recipe, sets

Options = TypeVar("Options")

RECIPE_FLAGS: Mapping[tuple[str, ...], dict[str, Any]] = {
    ("--config", "-c"): {"help": "recipe: a YAML file of flag names and values; flags win over it"},
    ("--override", "-o"): {
        "help": "change one value of the recipe, or any flag: -o Optimizer.lr=0.01; may be repeated",
        "action": "append",
        "metavar": "KEY=VALUE",
    },
    ("--print_config",): {"help": "print every value as a recipe, run nothing", "action": "store_true"},
}


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
            result = values.convert(value, self.annotation)
        except (TypeError, ValueError):
            raise OptionError(f"{self.words[0]} got {value!r}, wants {values.describe(self.annotation)}") from None
        if self.spec.choices and result is not None and result not in self.spec.choices:
            raise OptionError(f"{self.words[0]} got {value!r}, wants one of {', '.join(self.spec.choices)}")
        for number in result if isinstance(result, tuple) else (result,):
            self._check_bounds(number)
        return result

    def _check_bounds(self, number: Any) -> None:
        if number is None:
            return
        least, most = self.spec.least, self.spec.most
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


def parse(
    command: type[Options],
    argv: Sequence[str] | None = None,
    complete: Callable[[Options], Options] = lambda options: options,
) -> Options:
    """Resolve a command's options: flag, else `-o`, else recipe (`--config`), else default.

    Args:
        command: A frozen dataclass of groups with a field `explicit: frozenset[str]`; its docstring is the help text.
        argv: Words of the command line; None means those of this process.
        complete: Chooses values that were not given and need more than the command line; runs before the options are
            printed.

    Returns:
        The command's options; `explicit` holds the names that a flag or the recipe set.

    Raises:
        OptionError: An unknown flag or recipe key (the nearest known one is named), or a value that does not fit.
        SystemExit: `--print_config` printed them, or `--help` the flags.
    """
    flags = tuple(flags_of(command))
    given = _read_flags(command, flags, argv)
    recipe, changes, printed = (given.pop(name, None) for name in ("config", "override", "print_config"))
    meanings = _meanings_of(command, flags)
    chosen = _read_recipe(recipe, meanings, flags) if recipe else {}
    chosen |= interpret("-o", read_overrides(changes or ()), meanings) | given
    groups: dict[str, dict[str, Any]] = {}
    for known in flags:
        value = known.convert(chosen[known.field]) if known.field in chosen else known.default
        groups.setdefault(known.group, {})[known.field] = value
    hints = typing.get_type_hints(command)
    built = {group: hints[group](**fields) for group, fields in groups.items()}
    options = complete(command(**built, explicit=frozenset(chosen)))
    if printed:
        sys.stdout.write(as_recipe(options) if is_first() else "")
        raise SystemExit(0)
    return options


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
        if known.field not in fields or value is None or (known.spec.switch and value is known.default):
            continue
        if known.spec.switch:
            words += [known.words[0]] if value else ["--override", f"{known.field}=false"]
        elif isinstance(value, tuple):
            words += [known.words[0], *map(str, value)]
        else:
            words.append(f"{known.words[0]}={value}")
    return words


def as_recipe(options: Any) -> str:
    """Write options as a recipe that gives the same run again, with every value in it.

    `defaults` names the flags that nobody had set: as long as their value is the default they count as not set when
    the recipe is read. Values that were chosen for a reason (`options.reasons`, by field) have it beside them.
    """
    reasons: Mapping[str, str] = getattr(options, "reasons", {})
    lines = ["# every flag as it was resolved; read it with --config"]
    for name, value in as_dict(options).items():
        beside = f"  # {reasons[name]}" if name in reasons else ""
        lines.append(_line(name, value) + beside)
    unset = [name for name in as_dict(options) if name not in options.explicit and name not in reasons]
    return "\n".join([*lines, "# flags that nobody had set", _line(DEFAULTS, unset), ""])


def change(options: Options, values_of: Mapping[str, Any]) -> Options:
    """Options with other values, by field; `explicit` stays as it is."""
    groups: dict[str, dict[str, Any]] = {}
    for known in flags_of(type(options)):
        if known.field in values_of:
            groups.setdefault(known.group, {})[known.field] = known.convert(values_of[known.field])
    changed = {group: dataclasses.replace(getattr(options, group), **fields) for group, fields in groups.items()}
    return dataclasses.replace(typing.cast(Any, options), **changed)


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
    for spellings, spec in RECIPE_FLAGS.items():
        parser.add_argument(*spellings, **spec)
    for known in flags:
        _add_flag(parser, known)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        words = [word for words in (*RECIPE_FLAGS, *(known.words for known in flags)) for word in words]
        raise OptionError(f"unknown flag {unknown[0]}: {nearest(unknown[0].split('=')[0], words)}")
    return vars(found)


def _add_flag(parser: argparse.ArgumentParser, known: Flag) -> None:
    text = f"{known.spec.help} (default: {_shown(known.default)})".replace("%", "%%")
    if known.spec.switch:
        parser.add_argument(*known.words, dest=known.field, action="store_true", help=text)
        return
    many = values.takes_many(known.annotation)
    metavar = "{" + ",".join(known.spec.choices) + "}" if known.spec.choices else known.field.upper()
    parser.add_argument(*known.words, dest=known.field, nargs="+" if many else None, metavar=metavar, help=text)


def _read_recipe(path: str, meanings: Mapping[str, Meaning], flags: Sequence[Flag]) -> dict[str, Any]:
    """The recipe's values by field, without those that say they are defaults and still are."""
    recipe = read_recipe(path)
    unset = recipe.pop(DEFAULTS, [])
    if not isinstance(unset, list):
        raise OptionError(f"--config {path}: {DEFAULTS} is {unset!r}, wants the list that --print_config writes")
    found = interpret(f"--config {path}", recipe, meanings)
    for known in flags:
        if known.field in found and known.field in unset and known.convert(found[known.field]) == known.default:
            del found[known.field]
    return found


def _meanings_of(command: type, flags: Sequence[Flag]) -> dict[str, Meaning]:
    """What each key of a recipe means: any spelling of a flag, without the dashes, or a path of the command's own."""
    spellings = {word.removeprefix("--"): known.field for known in flags for word in (*known.words, f"--{known.field}")}
    return {word: sets(field) for word, field in spellings.items()} | getattr(command, "NESTED", {})


def _line(name: str, value: Any) -> str:
    """One line of YAML, however long."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    body = text.removesuffix("...\n").strip()  # yaml ends a document that is a bare word with dots
    return f"{name}: {body}"


def _shown(default: Any) -> str:
    if default is None:
        return "chosen at start"
    return " ".join(str(part) for part in default) if isinstance(default, tuple) else str(default)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
