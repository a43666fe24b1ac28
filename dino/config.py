"""Settings as small frozen dataclasses, defined next to the code they configure.

A setting whose default is None is derived: from a file, from the size of the run, or from the
machine. If nothing determines it, it takes the reference value declared by `derived`, which is also
the value that is displayed and stored.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import yaml

from dino.errors import OptionError, nearest

Config = TypeVar("Config")

RECIPE = "recipe.yaml"  # a run's settings, stored alongside its checkpoint
RECIPE_MARK = "# every flag as it was resolved; read it with --config"  # first line of ours
UNSET = "defaults"  # key of a recipe: the settings that were left at their defaults
REFERENCE, LIMITS = "reference", "limits"  # keys of a field's metadata
# Other projects' names for settings, where the closest spelling would suggest the wrong setting.
SYNONYMS = {
    "batch_size": "batch_size_per_device",
    "k": "nb_knn",
    "learning_rate": "lr",
    "model": "arch",
    "workers": "num_workers",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The allowed values of a setting.

    Attributes:
        choices: Allowed values.
        least: Smallest allowed number; applies to each item of a tuple.
        most: Largest allowed number.
    """

    choices: tuple[str, ...] | None = None
    least: float | None = None
    most: float | None = None

    def check(self, label: str, value: Any) -> None:
        """Reject a value outside the limits; None is always allowed.

        Args:
            label: The setting's name in the error.
            value: The setting's value.

        Raises:
            OptionError: The value is out of limits; names the setting, the limit and the value.
        """
        for part in value if isinstance(value, tuple) else (value,):
            if part is None:
                continue
            if self.choices and part not in self.choices:
                raise OptionError(
                    f"{label} must be one of {', '.join(self.choices)} (got {part!r})", value=value
                )
            # Written so that nan, for which every comparison is false, is out of bounds.
            above = self.least is None or part >= self.least
            if not (above and (self.most is None or part <= self.most)):
                raise OptionError(
                    f"{label} must be {self._describe_bounds()} (got {part})", value=value
                )

    def _describe_bounds(self) -> str:
        if self.most is None:
            return f">= {self.least}"
        return f"<= {self.most}" if self.least is None else f"between {self.least} and {self.most}"


def setting(
    default: Any,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Declare a setting with limits."""
    return dataclasses.field(
        default=default,
        metadata={LIMITS: Limits(choices=choices, least=least, most=most), REFERENCE: default},
    )


def derived(
    reference: Any,
    *,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Declare a setting that is derived unless set; `reference` is the original's value."""
    return dataclasses.field(
        default=None,
        metadata={LIMITS: Limits(choices=choices, least=least, most=most), REFERENCE: reference},
    )


def chosen(group: Any, name: str) -> Any:
    """The value of a setting, or its reference value if it is None."""
    value = getattr(group, name)
    if value is None:
        field = next(field for field in dataclasses.fields(group) if field.name == name)
        value = field.metadata.get(REFERENCE)
    return value


def list_settings(config: Any) -> Iterator[tuple[str, str]]:
    """Yield (group, setting) of a config whose fields are groups, in order."""
    for group in dataclasses.fields(config):
        for setting in dataclasses.fields(getattr(config, group.name)):
            yield group.name, setting.name


def as_dict(config: Any) -> dict[str, Any]:
    """Flatten a config to {setting: value}, the form stored as `args` in a checkpoint."""
    values = {name: chosen(getattr(config, group), name) for group, name in list_settings(config)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def build(config: type[Config], settings: Mapping[str, Any]) -> Config:
    """Build a config from the given settings, with defaults for the rest.

    Args:
        config: Class whose fields are groups of settings.
        settings: Values by name. Lists are accepted as tuples, a single value as a tuple of one,
            paths as text, and integers of any library as int.

    Raises:
        TypeError: There is no setting with that name; the message suggests the closest one.
        OptionError: A value has the wrong type or is out of limits.
    """
    defaults = config()
    declared = {
        field.name: (field, typing.get_type_hints(type(getattr(defaults, group.name)))[field.name])
        for group in dataclasses.fields(cast(Any, defaults))
        for field in dataclasses.fields(getattr(defaults, group.name))
    }
    for name in settings:
        if name not in declared:
            raise TypeError(f"unknown setting {name!r}: {_name_nearest(name, declared)}")
    values = {name: _fit(name, value, declared[name][1]) for name, value in settings.items()}
    for name, value in values.items():
        declared[name][0].metadata.get(LIMITS, Limits()).check(f"`{name}`", value)
    return change(defaults, values)


def _name_nearest(name: str, known: Collection[str]) -> str:
    """Remedy for an unknown name: its synonym in this project, else the closest spelling."""
    meant = SYNONYMS.get(name)
    return f"did you mean {meant}?" if meant in known else nearest(name, list(known), cutoff=0.6)


def _fit(name: str, value: Any, annotation: Any) -> Any:
    """Convert `value` to the declared type of a setting, or raise OptionError."""
    if value is None and types.NoneType in typing.get_args(annotation):
        return None
    if isinstance(value, str) and value in words_of(annotation):
        return value
    wanted = required(annotation)
    if typing.get_origin(wanted) is tuple:
        parts = typing.get_args(wanted)
        if parts[-1] is Ellipsis and not isinstance(value, list | tuple):
            value = (value,)
        if isinstance(value, list | tuple) and (parts[-1] is Ellipsis or len(value) == len(parts)):
            return tuple(_fit(name, item, parts[0]) for item in value)
        count = "several" if parts[-1] is Ellipsis else str(len(parts))
        raise OptionError(
            f"`{name}` must be {count} {parts[0].__name__} values (got {value!r})", value=value
        )
    if wanted is str and isinstance(value, str | os.PathLike):
        return expand_home(os.fspath(value))
    if wanted is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if wanted is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if wanted is int or not isinstance(value, wanted):
        raise OptionError(
            f"`{name}` must be of type {wanted.__name__} (got {value!r})", value=value
        )
    return value


def required(annotation: Any) -> Any:
    """Return `X` for `X | None` and for `X | Literal["word"]`, else the annotation itself."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    return annotation


def words_of(annotation: Any) -> tuple[str, ...]:
    """Return the words that a setting takes instead of its values: the Literal of its type."""
    parts = typing.get_args(annotation)
    literals = [part for part in parts if typing.get_origin(part) is typing.Literal]
    return typing.get_args(literals[0]) if literals else ()


def expand_home(text: str) -> str:
    """Replace a leading `~` by the home folder; shells leave it in `--output_dir=~/runs`.

    No text of a setting but a path begins with one.
    """
    return os.path.expanduser(text)


def change(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of the config with some settings replaced.

    Raises:
        KeyError: The config has no such setting.
    """
    owner = {name: group for group, name in list_settings(config)}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        groups.setdefault(owner[name], {})[name] = value
    replaced = {
        group: dataclasses.replace(getattr(config, group), **fields)
        for group, fields in groups.items()
    }
    changed: Config = dataclasses.replace(cast(Any, config), **replaced)
    return changed


def as_recipe(config: Any, given: Collection[str], reasons: Mapping[str, str] | None = None) -> str:
    """Write a config as a recipe with every value, which reproduces the run.

    Args:
        config: Groups of settings.
        given: Names of the settings that were set explicitly. The recipe lists the others under
            `defaults`; while their value equals the default, reading the recipe leaves them unset.
        reasons: Why a value was chosen, by setting; written as a comment on its line.
    """
    reasons = reasons or {}
    lines = [RECIPE_MARK]
    for name, value in as_dict(config).items():
        comment = f"  # {reasons[name]}" if name in reasons else ""
        lines.append(_write_line(name, value) + comment)
    unset = [name for name in as_dict(config) if name not in given and name not in reasons]
    return "\n".join([*lines, "# flags that were not set", _write_line(UNSET, unset), ""])


def _write_line(name: str, value: Any) -> str:
    """One line of YAML, regardless of length."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    body = text.removesuffix("...\n").strip()  # yaml ends a bare scalar document with dots
    return f"{name}: {body}"


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where results are written."""

    output_dir: str = "."


@dataclass(frozen=True, kw_only=True)
class EpochConfig(OutputConfig):
    """Training length, random seed, and where the numbers go besides log.txt."""

    epochs: int = setting(100, least=1)
    seed: int = setting(0, least=0)
    log_to: tuple[str, ...] = setting(
        ("tensorboard",), choices=("tensorboard", "jsonl", "csv", "wandb", "mlflow", "none")
    )


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """The learning rate."""

    lr: float = setting(0.0005, least=0)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Machine-readable results; the log lines are for people."""

    json: str | None = None
