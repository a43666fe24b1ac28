"""Parses the words of a command line: flags, their help, and suggestions for unknown flags."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import itertools
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from dino.cli import values
from dino.cli.flags import ipu
from dino.cli.spec import Spec
from dino.cli.synonyms import SYNONYMS
from dino.config import Limits
from dino.errors import OptionError

HELP_ALL = "--help-all"
GOOD_MATCH = 0.7  # below it a guess misleads
NEGATIVE_LIST = re.compile(r"-[\d.]+,")
LEAST_PART = 3  # a word must be longer to be searched for inside flags

RECIPE_FLAGS: Mapping[tuple[str, ...], dict[str, Any]] = {
    ("--config", "-c"): {"help": "recipe: a YAML file of flag names and values; flags override it"},
    ("--override", "-o"): {
        "help": "change one value of the recipe or any flag: -o Optimizer.lr=0.01; may be repeated",
        "action": "append",
        "metavar": "KEY=VALUE",
    },
    ("--print_config",): {
        "help": "print every value as a recipe and exit",
        "action": "store_true",
    },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of one command.

    Attributes:
        group: Name of the config's group that holds the setting.
        field: Name of the setting.
        annotation: Type of the setting.
        default: Default value; None if it is derived.
        reference: The reference's value.
        limits: Allowed values.
        spec: How it is written on the command line.
        title: Title of the group in the help.
    """

    group: str
    field: str
    annotation: Any
    default: Any
    reference: Any
    limits: Limits
    spec: Spec
    title: str

    @property
    def words(self) -> tuple[str, ...]:
        """All spellings on the command line, the usual one first."""
        return (self.spec.spelling or f"--{self.field}", *self.spec.also)

    def convert(self, value: Any) -> Any:
        """Convert `value` (text of a flag, or a YAML value of a recipe) to this flag's type.

        Raises:
            OptionError: The value has another type, is not among the choices or is out of bounds;
                the message names both.
        """
        try:
            result = values.convert(value, self.annotation)
        except (TypeError, ValueError):
            raise OptionError(
                f"{self.words[0]} must be {values.describe(self.annotation)} (got {value!r})"
            ) from None
        self.limits.check(self.words[0], result)
        return result


class Help(typing.NamedTuple):
    """Texts of `--help` in addition to the flags.

    Attributes:
        summary: What the command does; by default the config's docstring.
        example: An example command line.
        required: Settings that the command needs; they come first.
        places: Words before the flags, such as "IN OUT".
    """

    summary: str | None = None
    example: str | None = None
    required: tuple[str, ...] = ()
    places: str = ""


NO_HELP = Help()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise OptionError(f"{message}", remedy="--help lists the flags")


def read_flags(
    config: type, flags: Sequence[Flag], argv: Sequence[str] | None, about: Help
) -> dict[str, Any]:
    """Return the words of a command line as {setting: text or texts}.

    Raises:
        OptionError: A flag is unknown or lacks its value.
        SystemExit: `--help` printed the flags.
    """
    words = _join_negative(sys.argv[1:] if argv is None else argv)
    parser = _build_parser(
        config, flags, about, all_flags=HELP_ALL in words or _asks_for_ipu(words)
    )
    options, unknown = parser.parse_known_args(
        ["--help" if word == HELP_ALL else word for word in words]
    )
    if unknown:
        raise OptionError(f"unknown flag {unknown[0]}: {_suggest(unknown[0].split('=')[0], flags)}")
    return vars(options)


def _join_negative(words: Sequence[str]) -> list[str]:
    """Write `--flag -1,5` as `--flag=-1,5`: otherwise `-1,5` would count as a flag."""
    joined: list[str] = []
    for word in words:
        if NEGATIVE_LIST.match(word) and joined and joined[-1].startswith("--"):
            word = f"{joined.pop()}={word}"
        joined.append(word)
    return joined


def _build_parser(config: type, flags: Sequence[Flag], about: Help, *, all_flags: bool) -> _Parser:
    hidden = () if all_flags else ipu.FLAGS
    more = (
        f"\n{HELP_ALL} also shows the flags of --device ipu"
        if any(flag.field in hidden for flag in flags)
        else ""
    )
    parser = _Parser(
        description=about.summary or inspect.cleandoc(config.__doc__ or ""),
        epilog=(f"example:\n  {about.example}" if about.example else "") + more or None,
        usage=" ".join(filter(None, ("%(prog)s", about.places, "[flags]"))),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    titles = {} if not about.required else {"": parser.add_argument_group("required")}
    for known in sorted(flags, key=lambda known: known.field not in about.required):
        if known.field in about.required:
            _add_flag(titles[""], known)
            continue
        if known.title not in titles:
            titles[known.title] = parser.add_argument_group(known.title)
        _add_flag(titles[known.title], known, hidden=known.field in hidden)
    recipes = parser.add_argument_group("recipes")
    for spellings, spec in RECIPE_FLAGS.items():
        recipes.add_argument(*spellings, **spec)
    return parser


def _asks_for_ipu(words: Sequence[str]) -> bool:
    return "--device=ipu" in words or any(
        pair == ("--device", "ipu") for pair in itertools.pairwise(words)
    )


def _suggest(word: str, flags: Sequence[Flag]) -> str:
    """Suggest a flag for an unknown one: a known synonym, else one with a similar spelling."""
    name = word.lstrip("-").replace("-", "_").lower()
    fields = {known.field: known.words[0] for known in flags}
    field, _, value = SYNONYMS.get(name, name).partition(" ")
    if field in fields:
        return f"did you mean {' '.join(filter(None, (fields[field], value)))}?"
    words = [*itertools.chain(*RECIPE_FLAGS), *(flag for known in flags for flag in known.words)]
    inside = [
        flag for flag in words if len(name) > LEAST_PART and name in flag.replace("-", "_").lower()
    ]
    close = inside[:1] or difflib.get_close_matches(word, words, n=1, cutoff=GOOD_MATCH)
    return f"did you mean {close[0]}?" if close else "--help lists the flags"


def _add_flag(group: argparse._ArgumentGroup, known: Flag, *, hidden: bool = False) -> None:
    text = argparse.SUPPRESS if hidden else f"{known.spec.help}{_shown(known)}".replace("%", "%%")
    if known.spec.switch:
        group.add_argument(*known.words, dest=known.field, action="store_true", help=text)
        return
    many = values.takes_many(known.annotation)
    metavar = (
        "{" + ",".join(known.limits.choices) + "}" if known.limits.choices else known.field.upper()
    )
    group.add_argument(
        *known.words, dest=known.field, nargs="+" if many else None, metavar=metavar, help=text
    )


def _shown(known: Flag) -> str:
    """Return the default for the help; empty for switches and derived values."""
    default = known.reference if known.default is None else known.default
    if default is None or known.spec.switch:
        return ""
    text = " ".join(str(part) for part in default) if isinstance(default, tuple) else str(default)
    return f" (default: {text})"
