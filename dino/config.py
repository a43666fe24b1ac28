"""Settings as values: small frozen dataclasses, each beside what it sets, and how they are read as one flat table.

A setting whose default is None is derived: from a file, from the size of the run, from the machine. Where nothing tells
otherwise it is the reference's number, which `derived` declares; that number is what is shown and stored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import yaml

Config = TypeVar("Config")

RECIPE = "recipe.yaml"  # the name under which a run keeps its settings, beside its checkpoint
UNSET = "defaults"  # key of a recipe: the settings that nobody had given
REFERENCE = "reference"


def derived(reference: Any) -> Any:
    """Declare a setting that is derived unless it is given; `reference` is the reference implementation's value."""
    return dataclasses.field(default=None, metadata={REFERENCE: reference})


def chosen(group: Any, name: str) -> Any:
    """The value of a setting, or the reference's where it is None."""
    value = getattr(group, name)
    if value is None:
        field = next(field for field in dataclasses.fields(group) if field.name == name)
        value = field.metadata.get(REFERENCE)
    return value


def list_settings(config: Any) -> Iterator[tuple[str, str]]:
    """(group, setting) of a config whose fields are groups, in order."""
    for group in dataclasses.fields(config):
        for setting in dataclasses.fields(getattr(config, group.name)):
            yield group.name, setting.name


def as_dict(config: Any) -> dict[str, Any]:
    """Flatten a config to {setting: value}, the form stored as `args` in a checkpoint."""
    values = {name: chosen(getattr(config, group), name) for group, name in list_settings(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def change(config: Config, values: Mapping[str, Any]) -> Config:
    """The same config with other values, by setting.

    Raises:
        KeyError: A setting that the config does not have.
    """
    place = {name: group for group, name in list_settings(config)}
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        groups.setdefault(place[name], {})[name] = value
    replaced = {group: dataclasses.replace(getattr(config, group), **fields) for group, fields in groups.items()}
    return dataclasses.replace(cast(Any, config), **replaced)


def as_recipe(config: Any, given: Collection[str], reasons: Mapping[str, str] | None = None) -> str:
    """Write a config as a recipe that gives the same run again, with every value in it.

    Args:
        config: Groups of settings.
        given: Names of the settings that somebody gave; `defaults` in the recipe names the others: as long as their
            value is the default, they count as not given when the recipe is read.
        reasons: Why a value was chosen, by setting; stands beside it.
    """
    reasons = reasons or {}
    lines = ["# every flag as it was resolved; read it with --config"]
    for name, value in as_dict(config).items():
        beside = f"  # {reasons[name]}" if name in reasons else ""
        lines.append(_write_line(name, value) + beside)
    unset = [name for name in as_dict(config) if name not in given and name not in reasons]
    return "\n".join([*lines, "# flags that nobody had set", _write_line(UNSET, unset), ""])


def _write_line(name: str, value: Any) -> str:
    """One line of YAML, however long."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    body = text.removesuffix("...\n").strip()  # yaml ends a document that is a bare word with dots
    return f"{name}: {body}"


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where results go."""

    output_dir: str = "."


@dataclass(frozen=True, kw_only=True)
class EpochConfig(OutputConfig):
    """How long, and with which random numbers."""

    epochs: int = 100
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RateConfig:
    """How large a step is."""

    lr: float = 0.0005


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Results for programs; people read the log lines."""

    json: str | None = None
